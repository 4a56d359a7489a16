"""From a dataset dict to a sample: one mapper for each task."""
