"""Data sets in YOLO's format: a ``data.yaml``, folders or lists of images, and a text file of labels beside each.

``yolo:DATA.yaml`` names its "train" images, ``yolo:DATA.yaml@val`` others. Lines of labels are boxes, polygons or
oriented boxes (whose extent is taken), as fractions of the image.
"""

import os
from pathlib import Path

import yaml

from updetr_d2.data.datasets.annotation_repair import AnnotationError, numbers
from updetr_d2.data.datasets.converted import CocoContent, add_converted_source, split_of
from updetr_d2.data.datasets.image_folder import existing_folder, load_image_folder
from updetr_d2.utils.files import refuse_special_file

FORM = "yolo:DATA.yaml[@SPLIT]"
SPLITS = ("train", "val", "test")


def read_yolo(location: str) -> CocoContent:
    """Read the images of a split and their labels; category ids are the class numbers of the files.

    Args:
        location: ``DATA.yaml`` or ``DATA.yaml@SPLIT``; "train" without a split. ``~`` is understood.

    Raises:
        AnnotationError: naming the file that cannot be used.
    """
    yaml_file, split = split_of(location, default="train")
    config = _read_config(yaml_file)
    names = _class_names(config, yaml_file)
    if not config.get(split):
        there = ", ".join(each for each in SPLITS if config.get(each)) or "none"
        raise AnnotationError(f"{yaml_file} has no images for '{split}'; its splits: {there}.")
    content = CocoContent(stem=f"{Path(yaml_file).stem}-{split}", categories=dict(enumerate(names)))
    for image_file in _image_files(config, split, yaml_file):
        size = content.add_image(image_file)
        if size is not None:
            _add_labels(content, label_file(image_file), size, has_keypoints="kpt_shape" in config)
    return content


def splits_of_yolo(yaml_file: str) -> list[str]:
    """The splits that a ``data.yaml`` has images for.

    Raises:
        AnnotationError: if it cannot be read.
    """
    config = _read_config(os.path.abspath(os.path.expanduser(yaml_file)))
    return [split for split in SPLITS if config.get(split)]


def label_file(image_file: str) -> str:
    """Where the labels of an image are: in "labels" instead of the last "images" of its path, as ``.txt``."""
    head, separator, tail = image_file.rpartition(f"{os.sep}images{os.sep}")
    path = f"{head}{os.sep}labels{os.sep}{tail}" if separator else image_file
    return f"{os.path.splitext(path)[0]}.txt"


def _read_config(yaml_file: str) -> dict:
    try:
        refuse_special_file(yaml_file)
        with open(yaml_file, encoding="utf-8-sig") as file:
            config = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AnnotationError(f"The file {yaml_file} cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise AnnotationError(f"{yaml_file} is no data.yaml of YOLO's: it must have 'names' and 'train'.")
    return config


def _class_names(config: dict, yaml_file: str) -> list[str]:
    names = config.get("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise AnnotationError(f"The 'names' of {yaml_file} must list the classes, or number them from 0.")
    return [str(name) for name in names]


def _image_files(config: dict, split: str, yaml_file: str) -> list[str]:
    given = config[split]
    files: list[str] = []
    for part in given if isinstance(given, list) else [given]:
        path = _find(str(part), config, yaml_file)
        if os.path.isdir(path):
            files += (image["file_name"] for image in load_image_folder(existing_folder(path)))
        else:
            files += _listed_images(path)
    return list(dict.fromkeys(files))


def _find(part: str, config: dict, yaml_file: str) -> str:
    """A path of a data.yaml: relative to its "path", or to itself where that is of another machine."""
    own_folder = os.path.dirname(yaml_file)
    root = os.path.join(own_folder, os.path.expanduser(str(config.get("path") or "")))
    # Roboflow writes ../train/images where it means train/images.
    candidates = [
        os.path.normpath(os.path.join(folder, name))
        for folder in (root, own_folder)
        for name in (os.path.expanduser(part), part.removeprefix("../"))
    ]
    found = next(filter(os.path.exists, candidates), None)
    if found is None:
        raise AnnotationError(f"{yaml_file} names {part}, but there is no {candidates[0]}.")
    return found


def _listed_images(list_file: str) -> list[str]:
    try:
        refuse_special_file(list_file)
        with open(list_file, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"The list of images {list_file} cannot be read ({error}).") from error
    folder = os.path.dirname(list_file)
    return [os.path.normpath(os.path.join(folder, line)) for line in lines if line]


def _add_labels(content: CocoContent, path: str, size: tuple[int, int], *, has_keypoints: bool) -> None:
    """Add the objects of the last image; without a file it has none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"The labels {path} cannot be read ({error}).") from error
    for place, line in enumerate(lines, start=1):
        values = numbers(line.split())
        if not line.strip():
            continue
        is_polygon = values is not None and len(values) >= 7 and len(values) % 2 == 1 and not has_keypoints
        if values is None or not (len(values) == 5 or is_polygon or (has_keypoints and len(values) > 5)):
            raise AnnotationError(
                f"Line {place} of {path} is '{line[:50]}'; it must be a class and x, y, width, height, or a class "
                "and the points of a polygon."
            )
        class_id = values[0]
        if class_id not in content.categories:
            raise AnnotationError(
                f"Line {place} of {path} has the class {class_id:g}, but data.yaml names "
                f"{len(content.categories)}."
            )
        width, height = size
        if is_polygon:
            xs, ys = [x * width for x in values[1::2]], [y * height for y in values[2::2]]
            box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
            points = [value for point in zip(xs, ys) for value in point]
            content.add_object(int(class_id), box, polygon=points)
        else:
            x, y, w, h = values[1:5]
            content.add_object(
                int(class_id), ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
            )


add_converted_source("yolo", form=FORM, read=read_yolo)
