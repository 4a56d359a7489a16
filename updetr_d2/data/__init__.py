"""Data sets, mappers and loaders; importing registers the data sets."""

from updetr_d2.data.datasets import (  # noqa: F401
    coco,
    coco_panoptic,
    names,
    shards,
    voc_folder,
    yolo,
)
from updetr_d2.data.scenes import register  # noqa: F401
