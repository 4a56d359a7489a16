"""Folders with annotations in Pascal VOC's XML format, of any classes: ``voc:DIR``, ``voc:DIR@SPLIT``.

Either VOC's own layout (``Annotations``, ``JPEGImages`` and lists of images in ``ImageSets/Main``) or images with
an XML file beside each, as labelImg and Roboflow write them (a split is a folder then). The classes are all those
that are named below DIR, in alphabetical order, so that the splits agree.
"""

import os
from pathlib import Path

from updetr_d2.data.datasets.annotation_repair import AnnotationError
from updetr_d2.data.datasets.converted import CocoContent, add_converted_source, split_of
from updetr_d2.data.datasets.pascal_voc import image_file, read_annotation, read_image_list

FORM = "voc:DIR[@SPLIT]"


def read_voc_folder(location: str) -> CocoContent:
    """Read a folder, or a split of it; difficult objects become crowds, neither trained on nor counted.

    Args:
        location: ``DIR`` for all images, or ``DIR@SPLIT``; ``~`` is understood.

    Raises:
        AnnotationError: naming the folder or file that cannot be used.
    """
    folder, split = split_of(location, default="")
    every_file = xml_files(folder)
    chosen = _split_files(folder, split) if split else every_file
    known = {path: read_annotation(path) for path in dict.fromkeys([*every_file, *chosen])}
    classes = sorted({each.name for annotation in known.values() for each in annotation.objects})
    ids = {name: i for i, name in enumerate(classes, start=1)}
    stem = Path(folder).name + (f"-{split}" if split else "")
    content = CocoContent(stem=stem, categories={i: name for name, i in ids.items()})
    for path in chosen:
        annotation = known[path]
        if content.add_image(_image_of(path), annotation.size) is None:
            continue
        for each in annotation.objects:
            x0, y0, x1, y1 = each.box  # VOC's pixels count from 1, and the last one belongs to the box
            box = (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)
            content.add_object(ids[each.name], box, is_crowd=bool(each.difficult))
    return content


def splits_of_voc(folder: str) -> list[str]:
    """The lists of images, or folders with XML files, that a folder is divided into; none for undivided ones."""
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    lists = root / "ImageSets" / "Main"
    if lists.is_dir():
        # Beside them are lists for each class, such as cat_train.txt.
        return sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem)
    if (root / "Annotations").is_dir() or not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.glob("*.xml")))


def xml_files(folder: str) -> list[str]:
    """All annotation files of a folder, in the order of their paths.

    Raises:
        AnnotationError: if there are none.
    """
    annotations = Path(folder) / "Annotations"
    files = annotations.rglob("*.xml") if annotations.is_dir() else Path(folder).rglob("*.xml")
    found = sorted(map(str, files))
    if not found:
        raise AnnotationError(f"There are no annotation files (.xml) below {folder}.")
    return found


def _split_files(folder: str, split: str) -> list[str]:
    if os.path.isdir(os.path.join(folder, "Annotations")):
        ids = read_image_list(os.path.join(folder, "ImageSets", "Main", f"{split}.txt"))
        return [os.path.join(folder, "Annotations", f"{image_id}.xml") for image_id in ids]
    part = os.path.join(folder, split)
    if not os.path.isdir(part):
        there = ", ".join(splits_of_voc(folder)) or "none"
        raise AnnotationError(f"{folder} has no part '{split}'; its parts: {there}.")
    return xml_files(part)


def _image_of(xml_file: str) -> str:
    """The image with the name of an annotation file, in ``JPEGImages`` or beside it."""
    stem = os.path.splitext(xml_file)[0]
    head, separator, tail = stem.rpartition(f"{os.sep}Annotations{os.sep}")
    if not separator:
        return image_file(stem)
    return image_file(os.path.join(head, "JPEGImages", tail))


add_converted_source("voc", form=FORM, read=read_voc_folder)
