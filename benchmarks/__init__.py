"""Measurements that the documentation cites: speed, and what pre-training is worth with few labels."""
