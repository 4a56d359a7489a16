"""The commands: ``updetr NAME`` and ``tools/`` call the same functions."""
