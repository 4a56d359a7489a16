"""One-shot detection: which classes are seen, which query goes with which image."""
