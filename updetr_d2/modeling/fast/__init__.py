"""The same results sooner."""
