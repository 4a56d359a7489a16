"""Boxes of any file in COCO's formats: results of another detector or of SAM, or annotations (an upper bound)."""

import json
import os
from collections import defaultdict
from typing import Any

import numpy as np

from updetr_d2.data.proposals.file import image_id_of
from updetr_d2.data.proposals.source import PROPOSAL_REGISTRY, ProposalSource, SourceOptions
from updetr_d2.utils.files import refuse_special_file


@PROPOSAL_REGISTRY.register()
class CocoBoxes(ProposalSource):
    """The boxes that a file has for an image.

    Results (a list) are found by ``image_id``; annotations (a dict) by ``image_id`` or by the name of the image
    file, of which the last part is enough if it is unique. Classes are not read.

    Raises:
        ValueError: if no file was named, or it has another form.
    """

    name = "coco"

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        if not options.file:
            raise ValueError("--source coco reads boxes from a file: name it with --file.")
        try:
            refuse_special_file(options.file)
            with open(options.file, encoding="utf-8") as file:
                content = json.load(file)
            self._boxes = _read_boxes(content)
        except OSError as error:
            raise ValueError(f"--file {options.file} cannot be read: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--file {options.file} is neither results nor annotations in COCO's format "
                f"({type(error).__name__}: {error})."
            ) from error

    def __call__(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        image_id = image_id_of(dataset_dict)
        names = (str(image_id), os.path.basename(dataset_dict["file_name"]))
        found = next((self._boxes[name] for name in names if name in self._boxes), np.empty((0, 5)))
        order = np.argsort(-found[:, 4], kind="stable")
        return found[order, :4], found[order, 4]


def _read_boxes(content: Any) -> dict[str, np.ndarray]:
    """XYXY boxes with score ``[N, 5]`` by image id and, from annotations, by file name."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for entry in content["annotations"] if isinstance(content, dict) else content:
        if entry.get("iscrowd", 0):
            continue
        x, y, width, height = map(float, entry["bbox"])
        rows[str(entry["image_id"])].append([x, y, x + width, y + height, float(entry.get("score", 1))])
    boxes = {name: np.array(values) for name, values in rows.items()}
    if not all(np.isfinite(values).all() for values in boxes.values()):
        raise ValueError("a box or score is not finite")
    if isinstance(content, dict):
        ids_of: dict[str, set[str]] = defaultdict(set)
        for image in content["images"]:
            for name in {image["file_name"], os.path.basename(image["file_name"])}:
                ids_of[name].add(str(image["id"]))
        for name, ids in ids_of.items():
            (only, *others) = ids
            if not others and only in boxes:
                boxes.setdefault(name, boxes[only])
    return boxes
