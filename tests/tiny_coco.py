"""A data set in COCO's format of four small images with a cat or a dog each, and what forgets it again."""

import json
import logging
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


def write_tiny_coco(root: Path, *, masks: bool = False) -> str:
    """Write ``a.json`` and ``images/``.

    Args:
        root: existing folder.
        masks: whether the objects have polygons.

    Returns:
        the name of the data set for ``DATASETS``; ``folder:ROOT/images`` has the images without labels.
    """
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        # Two wide images and two tall ones.
        pixels = rng.integers(0, 256, (40, 48, 3) if i < 2 else (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    sizes = [{"height": 40, "width": 48} if i < 2 else {"height": 48, "width": 40} for i in range(4)]
    images = [{"id": i, "file_name": f"{i}.png", **size} for i, size in enumerate(sizes)]
    box = {"bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
    if masks:
        box["segmentation"] = [[2, 2, 22, 2, 22, 22, 2, 22]]
    annotations = [{"id": i + 1, "image_id": i, "category_id": 1 + i % 2, **box} for i in range(4)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (root / "a.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return f"coco:{root}/a.json@{root}/images"


def forget_runs(registered_before: set[str]) -> None:
    """Remove the data sets that came since and the handlers of loggers that runs have set up."""
    for name in set(DatasetCatalog) - registered_before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    for name in ("updetr_d2", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
