"""Labelled data sets straight from the command line: ``coco:/data/train.json@/data/images``."""

import functools
import hashlib
import json
import logging
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from updetr_d2.data.datasets.coco_repair import AnnotationError, read_annotation_file, repair_annotations
from updetr_d2.data.datasets.names import add_source, split_location
from updetr_d2.utils.cache import cache_folder, keep_copy
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)


def register_coco(name: str, location: str) -> None:
    """Check a data set in COCO's format and register it, with its classes, under ``name``.

    Detectron2's loader and evaluators read a copy of the annotation file in the cache folder: repaired if
    anything had to be, and the same for the whole run.

    Args:
        name: for ``DATASETS.*``.
        location: ``JSON@IMAGE_FOLDER``; ``~`` is understood.

    Raises:
        ValueError: if the location is of another form, or its files cannot be used.
    """
    parts = split_location(location, 2)
    if len(parts) != 2:
        raise ValueError(
            f"DATASETS: '{name}' must name an annotation file and a folder, as in "
            "coco:/data/train.json@/data/images."
        )
    json_file, image_folder = parts
    if not os.path.isdir(image_folder):
        raise ValueError(f"DATASETS: '{name}' names the folder {image_folder}, which does not exist.")
    usable_file, categories = usable_annotation_file(json_file, image_folder)
    DatasetCatalog.register(name, functools.partial(load_coco_json, usable_file, image_folder, name))
    ids = [category_id for category_id, _ in categories]
    MetadataCatalog.get(name).set(
        json_file=usable_file,
        image_root=image_folder,
        evaluator_type="coco",
        thing_classes=[class_name for _, class_name in categories],
        thing_dataset_id_to_contiguous_id={category_id: i for i, category_id in enumerate(ids)},
    )


def usable_annotation_file(json_file: str, image_folder: str) -> tuple[str, list[tuple[int, str]]]:
    """Check an annotation file; log what is wrong with it as a table.

    Returns:
        the copy in the cache folder, repaired if something had to be; and the categories as ``(id, name)``,
        sorted by id.

    Raises:
        AnnotationError: if it cannot be used.
    """
    content = read_annotation_file(json_file)
    repaired, report = repair_annotations(content, json_file=json_file, image_folder=image_folder)
    categories = sorted((category["id"], category["name"]) for category in repaired["categories"])
    images, annotations = len(repaired["images"]), len(repaired["annotations"])
    logger.info("%s: %d images, %d annotations, %d classes", json_file, images, annotations, len(categories))
    if content["annotations"] and not annotations:
        raise AnnotationError(
            f"None of the {len(content['annotations'])} annotations of {json_file} can be used: "
            f"{report.sentence()}."
        )
    if not report.counts:
        if report.notes:
            logger.warning("Odd things in %s:\n%s", json_file, report.table())
        return keep_copy(json_file, "annotations"), categories
    text = json.dumps(repaired)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = cache_folder("repaired_annotations") / f"{Path(json_file).stem}-{digest}.json"
    write_text(path, text)
    logger.warning("Problems in %s; the repaired annotations are in %s:\n%s", json_file, path, report.table())
    return str(path), categories


add_source("coco", form="coco:ANNOTATIONS.json@IMAGE_DIR", register=register_coco)
