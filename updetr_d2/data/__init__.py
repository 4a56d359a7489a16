"""Data sets, mappers and loaders; importing registers the data sets."""

from updetr_d2.data.datasets import coco, coco_panoptic, names, shards  # noqa: F401
from updetr_d2.data.scenes import register  # noqa: F401
