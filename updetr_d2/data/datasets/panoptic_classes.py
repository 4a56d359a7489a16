"""One numbering of the classes of a panoptic data set, whichever of Detectron2's two ways it was registered in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import Metadata, MetadataCatalog

# What registered panoptic data sets have as `evaluator_type`.
PANOPTIC_EVALUATOR = "coco_panoptic_seg"


def is_panoptic(dataset_name: str) -> bool:
    """Whether a registered data set has panoptic labels."""
    return MetadataCatalog.get(dataset_name).get("evaluator_type") == PANOPTIC_EVALUATOR


@dataclass(frozen=True)
class PanopticClasses:
    """Classes 0, 1, … as models predict them: the things first, then the stuff.

    Detectron2's "standard" registration numbers them so, too. Its "separated" one numbers stuff classes by
    themselves from 1, with 0 for all things together (the labels of its semantic segmentation files).

    Attributes:
        names: of all classes.
        num_things: classes below are things.
        dataset_ids: ``category_id`` of every class in the annotation files.
        stuff_labels: number of every stuff class in Detectron2's metadata, in the order of the classes.
        separated: whether the data set was registered in the separated way.
    """

    names: tuple[str, ...]
    num_things: int
    dataset_ids: tuple[int, ...]
    stuff_labels: tuple[int, ...]
    separated: bool

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "PanopticClasses":
        """
        Args:
            metadata: with Detectron2's ``{thing,stuff}_dataset_id_to_contiguous_id`` and
                ``{thing,stuff}_classes``.
        """
        thing_ids = _ids_by_label(metadata.thing_dataset_id_to_contiguous_id)
        stuff_ids = _ids_by_label(metadata.stuff_dataset_id_to_contiguous_id)
        num_things = len(thing_ids)
        separated = any(label < num_things for label in stuff_ids)
        if separated:
            del stuff_ids[0]  # all things together
        return cls(
            names=(
                *(metadata.thing_classes[label] for label in thing_ids),
                *(metadata.stuff_classes[label] for label in stuff_ids),
            ),
            num_things=num_things,
            dataset_ids=(*thing_ids.values(), *stuff_ids.values()),
            stuff_labels=tuple(stuff_ids),
            separated=separated,
        )

    def metadata_id(self, class_id: int) -> int:
        """The number that Detectron2's evaluators and visualizer know a class by."""
        if class_id < self.num_things:
            return class_id
        return self.stuff_labels[class_id - self.num_things]


def panoptic_metadata(categories: Sequence[dict]) -> dict:
    """Detectron2's metadata, in the standard way, of the categories of a panoptic annotation file.

    Args:
        categories: COCO's: ``id``, ``name``, ``isthing`` and optionally ``color``.
    """
    things = sorted((c for c in categories if c["isthing"]), key=lambda c: c["id"])
    stuff = sorted((c for c in categories if not c["isthing"]), key=lambda c: c["id"])
    ordered = [*things, *stuff]
    names = [category["name"] for category in ordered]
    metadata = {
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(things)},
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(stuff, start=len(things))},
    }
    colors = [category.get("color") for category in ordered]
    if all(map(_is_color, colors)):
        colors = [tuple(color) for color in colors if color is not None]
        metadata.update(thing_colors=colors, stuff_colors=colors)
    return metadata


def _is_color(value: Any) -> bool:
    """Whether it is a list of red, green and blue; figures choose colors of their own otherwise."""
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    return is_triple and all(type(each) is int and 0 <= each <= 255 for each in value)


def _ids_by_label(labels_by_id: dict[int, int]) -> dict[int, int]:
    return dict(sorted((label, dataset_id) for dataset_id, label in labels_by_id.items()))
