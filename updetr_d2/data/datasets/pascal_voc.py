"""Pascal VOC's folders as they are found: lists with more columns, XML files without what nobody needs.

Detectron2's loader and evaluator stop at floats as coordinates (VOC 2012 has them), at lists of one image and at
files without ``pose``, ``truncated``, ``difficult`` or ``size``.
"""

import logging
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from updetr_d2.data.datasets.annotation_repair import AnnotationError, flag, numbers
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_size

logger = logging.getLogger(__name__)

_SIDES = ("xmin", "ymin", "xmax", "ymax")

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


@dataclass(frozen=True)
class VOCObject:
    """An object of an annotation file; ``box`` is XYXY in VOC's 1-based inclusive pixels."""

    name: str
    box: tuple[float, float, float, float]
    difficult: int


@dataclass(frozen=True)
class VOCAnnotation:
    """An annotation file; ``size`` is (width, height), None if the file does not say."""

    size: tuple[int, int] | None
    objects: tuple[VOCObject, ...]


def read_annotation(xml_file: str) -> VOCAnnotation:
    """Read an annotation file of VOC's form.

    Raises:
        AnnotationError: if it cannot be read or an object has no name or no box, naming the file.
    """
    try:
        root = ET.parse(xml_file).getroot()
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"The annotation file {xml_file} cannot be read ({error}).") from error
    sides = numbers((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    objects = []
    for found in root.findall("object"):
        name = (found.findtext("name") or "").strip()
        box = numbers((found.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES)
        if not name or box is None:
            raise AnnotationError(
                f"An object ('{name}') in {xml_file} has no name, or no numbers xmin, ymin, xmax, ymax (bndbox)."
            )
        if box[0] >= box[2] or box[1] >= box[3]:
            logger.warning("%s: a box of no area (%s) is left out.", xml_file, ", ".join(map(str, box)))
            continue
        x0, y0, x1, y1 = box
        objects.append(VOCObject(name, (x0, y0, x1, y1), flag(found.findtext("difficult") or "0")))
    size = None if sides is None or min(sides) < 1 else (math.floor(sides[0]), math.floor(sides[1]))
    return VOCAnnotation(size, tuple(objects))


def difficult_flags(xml_file: str) -> list[int]:
    """1 for each object of a VOC annotation file that is marked difficult, else 0, in the file's order."""
    return [each.difficult for each in read_annotation(xml_file).objects]


def image_ids(dataset_name: str) -> list[str]:
    """The images of a registered VOC data set: the first column of its list.

    Raises:
        AnnotationError: if there is no list.
    """
    metadata = MetadataCatalog.get(dataset_name)
    return read_image_list(os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt"))


def read_image_list(path: str) -> list[str]:
    """The first column of a list of images.

    Raises:
        AnnotationError: if there is no list.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.split()[0] for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"The list of images {path} cannot be read ({error}).") from error


def load_voc(dataset_name: str) -> list[dict]:
    """Dataset dicts as Detectron2's loader makes them.

    Args:
        dataset_name: registered with ``detectron2.data.datasets.register_pascal_voc``.

    Raises:
        AnnotationError: if a file cannot be used or names a class that the data set does not have.
    """
    metadata = MetadataCatalog.get(dataset_name)
    classes = list(metadata.thing_classes)
    dataset_dicts = []
    for image_id in image_ids(dataset_name):
        xml_file = os.path.join(metadata.dirname, "Annotations", f"{image_id}.xml")
        annotation = read_annotation(xml_file)
        file_name = image_file(os.path.join(metadata.dirname, "JPEGImages", image_id))
        try:
            width, height = annotation.size or read_image_size(file_name)
        except UnusableImageError as error:
            logger.warning("Skipping %s, whose size %s does not say.", error, xml_file)
            continue
        unknown = [each.name for each in annotation.objects if each.name not in classes]
        if unknown:
            raise AnnotationError(
                f"{xml_file} names the class '{unknown[0]}', none of '{dataset_name}': {', '.join(classes)}."
            )
        dataset_dicts.append(
            {
                "file_name": file_name,
                "image_id": image_id,
                "height": height,
                "width": width,
                "annotations": [
                    {
                        "category_id": classes.index(each.name),
                        "bbox": [
                            each.box[0] - 1.0,
                            each.box[1] - 1.0,
                            float(each.box[2]),
                            float(each.box[3]),
                        ],
                        "bbox_mode": BoxMode.XYXY_ABS,
                    }
                    for each in annotation.objects
                ],
            }
        )
    return dataset_dicts


def write_plain_annotations(dataset_name: str, folder: str | os.PathLike, ids: Sequence[str]) -> None:
    """Write the annotations of images with all fields, and the integers, that Detectron2's evaluator reads."""
    source = os.path.join(MetadataCatalog.get(dataset_name).dirname, "Annotations")
    for image_id in ids:
        root = ET.Element("annotation")
        for each in read_annotation(os.path.join(source, f"{image_id}.xml")).objects:
            element = ET.SubElement(root, "object")
            fields = {"name": each.name, "pose": "", "truncated": "0", "difficult": str(each.difficult)}
            for key, value in fields.items():
                ET.SubElement(element, key).text = value
            box = ET.SubElement(element, "bndbox")
            for side, position in zip(_SIDES, each.box):
                ET.SubElement(box, side).text = str(round(position))
        ET.ElementTree(root).write(os.path.join(folder, f"{image_id}.xml"))


def image_file(stem: str) -> str:
    """The image with a path without suffix; as .jpg if there is none."""
    return next((stem + suffix for suffix in _SUFFIXES if os.path.isfile(stem + suffix)), f"{stem}.jpg")
