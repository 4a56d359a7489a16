"""Detectron2's dataset dicts of COCO annotations that are in memory, and a file of them for the next start.

``load_coco_json`` would read the file again, which takes most of the start of a run with a million annotations.
"""

import gc
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from updetr_d2.utils.files import refuse_special_file, replacing

logger = logging.getLogger(__name__)

# Of the form of the files; another one is made again.
_HEADER = b"updetr_d2 dataset dicts 1\n"
_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")


def coco_dicts(content: dict, image_folder: str, class_ids: dict[int, int]) -> list[dict]:
    """What ``detectron2.data.datasets.load_coco_json`` makes of an annotation file.

    Args:
        content: repaired, of :func:`.coco_repair.repair_annotations`.
        image_folder: that ``file_name`` is relative to.
        class_ids: category id -> contiguous id.

    Returns:
        dataset dicts, sorted by the ids of the images.
    """
    objects: dict[Any, list[dict]] = {image["id"]: [] for image in content["images"]}
    num_without_mask = 0
    for annotation in content["annotations"]:
        found = {key: annotation[key] for key in _KEYS if key in annotation}
        found["category_id"] = class_ids[found["category_id"]]
        found["bbox_mode"] = BoxMode.XYWH_ABS
        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        elif isinstance(mask, list) and mask:
            mask = [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
            if not mask:
                num_without_mask += 1
                continue
        if mask:
            found["segmentation"] = mask
        if found.get("keypoints"):
            # Pixel indices become positions; the third number of each point is its visibility.
            found["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(found["keypoints"])]
        objects[annotation["image_id"]].append(found)
    if num_without_mask:
        logger.warning("Filtered out %d instances without valid segmentation.", num_without_mask)
    return [
        {
            "file_name": os.path.join(image_folder, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def write_dicts(path: Path, dataset_dicts: list[dict]) -> None:
    """Write dataset dicts of :func:`coco_dicts`.

    Raises:
        OSError: if that cannot be done.
    """
    _set_box_mode(dataset_dicts, None)  # in place, as copies of a million annotations take time and memory
    try:
        content = pickle.dumps(dataset_dicts, protocol=5)
    finally:
        _set_box_mode(dataset_dicts, BoxMode.XYWH_ABS)
    with replacing(path) as file:
        file.write(_HEADER + hashlib.sha256(content).digest())
        file.write(content)


def read_dicts(path: str | Path) -> list[dict]:
    """Read a file of :func:`write_dicts`; nothing in it is ever run.

    Raises:
        ValueError: if it is not whole, or of another form.
        OSError: if it cannot be read.
    """
    refuse_special_file(path)
    data = memoryview(Path(path).read_bytes())
    start = len(_HEADER) + hashlib.sha256().digest_size
    if data[: len(_HEADER)] != _HEADER or hashlib.sha256(data[start:]).digest() != data[len(_HEADER) : start]:
        raise ValueError(f"{path} is no whole file of dataset dicts")
    with without_garbage_collection():
        try:
            dataset_dicts = _PlainUnpickler(io.BytesIO(data[start:])).load()
            _set_box_mode(dataset_dicts, BoxMode.XYWH_ABS)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is no file of dataset dicts ({error})") from error
    return dataset_dicts


def _set_box_mode(dataset_dicts: list[dict], mode: BoxMode | None) -> None:
    for each in dataset_dicts:
        for found in each["annotations"]:
            found["bbox_mode"] = mode


class _PlainUnpickler(pickle.Unpickler):
    """Makes dicts, lists, texts, bytes and numbers only."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Millions of new objects, none of which is garbage, would be looked through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
