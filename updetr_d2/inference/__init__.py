"""Trained models on single images."""
