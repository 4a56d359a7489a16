"""Data sets, mappers and loaders; importing registers the data sets."""

from updetr_d2.data import detection_sources, panoptic_sources, scenes, shards, sources  # noqa: F401
