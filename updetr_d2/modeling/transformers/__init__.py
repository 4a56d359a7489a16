"""Transformers of detectors."""
