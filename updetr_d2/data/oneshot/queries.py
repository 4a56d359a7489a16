"""The data of one-shot detection, from any labeled data set: who may be a target, who may be a query.

Everything that decides on classes happens here, once, before a loader or a mapper sees the data: training
images lose all annotations of classes that are not seen, so nothing later can use them.
"""

import logging
import os
import zlib
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.datasets.pascal_voc import difficult_flags
from updetr_d2.data.oneshot.splits import class_split

logger = logging.getLogger(__name__)


class QueryBox(NamedTuple):
    """An object that can be cut out as a query patch: its image and its box (XYXY, px)."""

    file_name: str
    box: tuple[float, float, float, float]


class QueryPool:
    """All objects of a data set that can be query patches, by class.

    Crowds and objects with a side below ``min_side`` are none.

    Args:
        dataset_dicts: Detectron2's format.
        min_side: shortest side (px) of an object.
        same_image: whether a query for an image may come from this image.
    """

    def __init__(self, dataset_dicts: DatasetDicts, *, min_side: float, same_image: bool) -> None:
        self.same_image = same_image
        # As arrays, which loader workers share without copying.
        self._files = np.array([str(each["file_name"]) for each in dataset_dicts])
        self._order = np.argsort(self._files)
        objects: dict[int, list[tuple[float, ...]]] = {}
        for i, dataset_dict in enumerate(dataset_dicts):
            for annotation in dataset_dict.get("annotations", ()):
                x0, y0, x1, y1 = BoxMode.convert(
                    annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
                )
                if not annotation.get("iscrowd", 0) and min(x1 - x0, y1 - y0) >= min_side:
                    objects.setdefault(annotation["category_id"], []).append((i, x0, y0, x1, y1))
        # By class: images of the objects, ascending, and boxes (XYXY).
        self._objects: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for class_id, rows in sorted(objects.items()):
            table = np.array(rows)
            self._objects[class_id] = (table[:, 0].astype(np.int64), table[:, 1:])

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes with at least one object, in ascending order."""
        return tuple(self._objects)

    def has_query(self, class_id: int, target_file: str) -> bool:
        """Whether there is an object of the class that may be a query for the image ``target_file``."""
        first, last = self._own_objects(class_id, target_file)
        return class_id in self._objects and len(self._objects[class_id][0]) > last - first

    def draw(self, rng: np.random.Generator, class_id: int, target_file: str, count: int) -> list[QueryBox]:
        """Draw ``count`` different objects of a class for an image; some repeatedly only if there are fewer."""
        images, boxes = self._objects[class_id]
        first, last = self._own_objects(class_id, target_file)
        num_candidates = len(images) - (last - first)
        chosen = rng.choice(num_candidates, min(count, num_candidates), replace=False)
        chosen = np.resize(np.where(chosen < first, chosen, chosen + last - first), count)
        return [
            QueryBox(str(self._files[image]), tuple(box))
            for image, box in zip(images[chosen], boxes[chosen].tolist())
        ]

    def _own_objects(self, class_id: int, target_file: str) -> tuple[int, int]:
        """Range of the objects of a class that may not be queries for an image: its own, if any."""
        place = np.searchsorted(self._files, target_file, sorter=self._order)
        if (
            self.same_image
            or class_id not in self._objects
            or place == len(self._files)
            or self._files[self._order[place]] != target_file
        ):
            return 0, 0
        images, _ = self._objects[class_id]
        first, last = np.searchsorted(images, [self._order[place], self._order[place] + 1])
        return int(first), int(last)


def build_query_pool(cfg: CfgNode, dataset_dicts: DatasetDicts) -> QueryPool:
    return QueryPool(
        dataset_dicts,
        min_side=cfg.INPUT.QUERY_PATCH.MIN_SIZE,
        same_image=cfg.DATASETS.ONESHOT.SAME_IMAGE,
    )


def training_images(cfg: CfgNode, dataset_dicts: DatasetDicts) -> list[dict]:
    """Leave only what one-shot training may see.

    Args:
        cfg: ``DATASETS.{TRAIN, ONESHOT}`` are read.
        dataset_dicts: of all of ``DATASETS.TRAIN``, Detectron2's format.

    Returns:
        the images with at least one object (no crowd) of a seen class, with the annotations of seen classes
        alone; without the images that show unseen classes if these are to be dropped.

    Raises:
        ValueError: if no image is left.
    """
    split = class_split(cfg, class_names(cfg.DATASETS.TRAIN[0]))
    keep_images_with_unseen = cfg.DATASETS.ONESHOT.KEEP_IMAGES_WITH_UNSEEN
    images = []
    for dataset_dict in dataset_dicts:
        annotations = dataset_dict.get("annotations", ())
        seen = [each for each in annotations if each["category_id"] in split.seen]
        shows_unseen = any(each["category_id"] in split.unseen for each in annotations)
        if objects_of(seen) and (keep_images_with_unseen or not shows_unseen):
            images.append({**dataset_dict, "annotations": seen})
    if not images:
        raise ValueError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with an object of the seen classes of "
            "DATASETS.ONESHOT."
        )
    logger.info(
        "One-shot training: %d of %d images, %d seen and %d unseen classes",
        len(images),
        len(dataset_dicts),
        len(split.seen),
        len(split.unseen),
    )
    return images


def objects_of(annotations: Collection[dict]) -> dict[int, int]:
    """Number of objects, crowds left out, by class."""
    return Counter(each["category_id"] for each in annotations if not each.get("iscrowd", 0))


def evaluation_images(dataset_name: str, dataset_dicts: DatasetDicts) -> list[dict]:
    """The dataset dicts with VOC's difficult objects as ``iscrowd``: ignored, neither missed nor false."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return list(dataset_dicts)
    folder = os.path.join(metadata.dirname, "Annotations")
    return [
        {
            **each,
            "annotations": [
                {**annotation, "iscrowd": flag}
                for annotation, flag in zip(
                    each["annotations"], difficult_flags(f"{folder}/{each['image_id']}.xml"), strict=True
                )
            ],
        }
        for each in dataset_dicts
    ]


def evaluation_queries(cfg: CfgNode, dataset_name: str, dataset_dicts: DatasetDicts) -> list[dict]:
    """Every test image with every class present in it, ``TEST.ONESHOT.NUM_QUERIES`` times.

    The query patches come from the test set and depend on ``TEST.ONESHOT.SEED``, the image and the class alone.

    Args:
        cfg: ``TEST.ONESHOT``, ``DATASETS.ONESHOT`` are read.
        dataset_name: of the test set.
        dataset_dicts: of the test set, Detectron2's format.

    Returns:
        dataset dicts without annotations, with ``query_class``, ``query_round`` (0 … NUM_QUERIES − 1) and
        ``queries``, a list of NUM_SHOTS :class:`QueryBox`. A class that no other image shows is left out
        where queries must come from another image.

    Raises:
        ValueError: if there is nothing to evaluate, or no query asked for.
    """
    split = class_split(cfg, class_names(dataset_name))
    num_rounds, num_shots = cfg.TEST.ONESHOT.NUM_QUERIES, cfg.DATASETS.ONESHOT.NUM_SHOTS
    if num_rounds < 1:
        raise ValueError(f"TEST.ONESHOT.NUM_QUERIES is {num_rounds}; it must be at least 1.")
    images = evaluation_images(dataset_name, dataset_dicts)
    pool = build_query_pool(cfg, images)
    expanded, num_left_out = [], 0
    for image in images:
        file_name = str(image["file_name"])
        target = {key: value for key, value in image.items() if key != "annotations"}
        present = objects_of(image["annotations"])
        for class_id in sorted(present.keys() & {*split.seen, *split.unseen}):
            if not pool.has_query(class_id, file_name):
                num_left_out += 1
                continue
            rng = np.random.default_rng([cfg.TEST.ONESHOT.SEED, _image_number(image), class_id])
            drawn = pool.draw(rng, class_id, file_name, num_rounds * num_shots)
            expanded += [
                {
                    **target,
                    "query_class": class_id,
                    "query_round": i,
                    "queries": drawn[i * num_shots : (i + 1) * num_shots],
                }
                for i in range(num_rounds)
            ]
    if num_left_out:
        logger.warning("%d pairs of image and class have no query patch and are not evaluated.", num_left_out)
    if not expanded:
        raise ValueError(f"DATASETS.TEST '{dataset_name}' has no image and class with a query patch.")
    return expanded


def _image_number(dataset_dict: dict) -> int:
    return zlib.crc32(str(dataset_dict["image_id"]).encode(errors="surrogatepass"))
