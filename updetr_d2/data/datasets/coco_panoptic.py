"""Panoptic data sets straight from the command line: ``coco_panoptic:/data/p.json@/data/png@/data/images``."""

import functools
import logging
import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from updetr_d2.data.datasets.coco_repair import AnnotationError
from updetr_d2.data.datasets.names import add_source, split_location
from updetr_d2.data.datasets.panoptic_annotations import read_panoptic_file, usable_panoptic_file
from updetr_d2.data.datasets.panoptic_classes import PANOPTIC_EVALUATOR, panoptic_metadata

logger = logging.getLogger(__name__)

FORM = "coco_panoptic:ANNOTATIONS.json@PNG_DIR@IMAGE_DIR"


def register_coco_panoptic_files(name: str, location: str) -> None:
    """Check a panoptic data set in COCO's format and register it as Detectron2's "standard" ones are.

    Args:
        name: for ``DATASETS.*``.
        location: ``JSON@PNG_FOLDER@IMAGE_FOLDER``; ``~`` is understood.

    Raises:
        ValueError: if the location is of another form, or its files cannot be used.
    """
    parts = split_location(location, 3)
    if len(parts) != 3:
        raise ValueError(f"DATASETS: '{name}' must name a file and two folders, as in {FORM}.")
    json_file, png_folder, image_folder = parts
    for folder in (png_folder, image_folder):
        if not os.path.isdir(folder):
            raise ValueError(f"DATASETS: '{name}' names the folder {folder}, which does not exist.")
    json_file, content = usable_panoptic_file(json_file)
    metadata = panoptic_metadata(content["categories"])
    DatasetCatalog.register(
        name, functools.partial(load_panoptic_files, json_file, png_folder, image_folder, metadata)
    )
    MetadataCatalog.get(name).set(
        **metadata,
        panoptic_json=json_file,
        panoptic_root=png_folder,
        image_root=image_folder,
        evaluator_type=PANOPTIC_EVALUATOR,
        ignore_label=255,
        label_divisor=1000,
    )


def load_panoptic_files(json_file: str, png_folder: str, image_folder: str, metadata: dict) -> list[dict]:
    """Dataset dicts of a panoptic annotation file.

    Unlike Detectron2's loader this takes the names of the images from the file, so they need not be JPEGs.

    Args:
        json_file, png_folder, image_folder: where annotations and images are.
        metadata: maps of category ids, as from :func:`panoptic_metadata`.

    Raises:
        AnnotationError: if no image can be used.
    """
    content = read_panoptic_file(json_file)
    images = {image["id"]: image for image in content["images"]}
    dataset_dicts, missing = [], []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            missing.append(f"image id {annotation['image_id']}")
            continue
        image_file = os.path.join(image_folder, image["file_name"])
        png_file = os.path.join(png_folder, annotation["file_name"])
        absent = [path for path in (image_file, png_file) if not os.path.exists(path)]
        if absent:
            missing += absent
            continue
        dataset_dicts.append(
            {
                "file_name": image_file,
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": png_file,
                "segments_info": [_contiguous(segment, metadata) for segment in annotation["segments_info"]],
            }
        )
    if missing:
        logger.warning("%s: %d things are missing, such as %s", json_file, len(missing), missing[0])
    if not dataset_dicts:
        raise AnnotationError(f"No image of {json_file} can be used; is {image_folder} their folder?")
    return dataset_dicts


def _contiguous(segment: dict, metadata: dict) -> dict:
    things = metadata["thing_dataset_id_to_contiguous_id"]
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    category_id = segment["category_id"]
    isthing = category_id in things
    return {**segment, "category_id": (things if isthing else stuff)[category_id], "isthing": isthing}


add_source("coco_panoptic", form=FORM, register=register_coco_panoptic_files)
