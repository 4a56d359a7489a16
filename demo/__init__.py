"""A page to try trained models in the browser."""
