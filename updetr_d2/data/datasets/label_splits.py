"""Parts of labels: fractions and folds, k images or k objects of each class, a held-out part for choosing.

The parts depend on the labels and a seed alone, so every process and every machine makes the same.
"""

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from updetr_d2.data.datasets.coco import usable_annotation_file
from updetr_d2.data.datasets.coco_repair import read_annotation_file
from updetr_d2.data.datasets.converted import coco_location
from updetr_d2.data.datasets.names import split_location


@dataclass(frozen=True)
class Labels:
    """Labels in COCO's format.

    Attributes:
        content: of the file: "images", "annotations", "categories" and whatever else it holds.
        image_folder: folder that ``file_name`` is relative to.
        stem: of the file's name.
    """

    content: dict
    image_folder: str
    stem: str

    @classmethod
    def read(cls, location: str, *, option: str) -> "Labels":
        """Read and repair labels as a training would.

        Args:
            location: ``JSON@IMAGE_FOLDER``, also with ``coco:`` before it, or ``yolo:`` or ``voc:`` labels.
            option: of the command line that gives it, for messages.

        Raises:
            ValueError: if it is of another form, or its files cannot be used.
        """
        parts = split_location(coco_location(location), 2)
        if len(parts) != 2:
            raise ValueError(
                f"{option} is '{location}'; it must name an annotation file and the folder of its images, as in "
                "/data/train.json@/data/images."
            )
        json_file, image_folder = parts
        if not os.path.isdir(image_folder):
            raise ValueError(f"{option} names the folder {image_folder}, which does not exist.")
        usable_file, _ = usable_annotation_file(json_file, image_folder)
        return cls(read_annotation_file(usable_file), image_folder, Path(json_file).stem)

    @property
    def images(self) -> list[dict]:
        return self.content["images"]

    @property
    def objects(self) -> list[dict]:
        """The annotations that are not crowds."""
        return [each for each in self.content["annotations"] if not each.get("iscrowd")]

    @property
    def class_names(self) -> list[str]:
        """In the order of the category ids."""
        return [category["name"] for category in self._categories()]

    def objects_per_class(self) -> dict[str, int]:
        """Number of objects by the name of their class."""
        counts = Counter(each["category_id"] for each in self.objects)
        return {category["name"]: counts[category["id"]] for category in self._categories()}

    def part(self, image_ids: Collection, *, labeled: bool = True) -> "Labels":
        """The images with these ids in the order of the file, with all of their annotations or without any."""
        images = [image for image in self.images if image["id"] in image_ids]
        annotations = [each for each in self.content["annotations"] if each["image_id"] in image_ids]
        return self._with(images, annotations if labeled else [])

    def without(self, image_ids: Collection) -> "Labels":
        """The other images, as a list without labels."""
        return self.part({image["id"] for image in self.images} - set(image_ids), labeled=False)

    def labeled_images(self) -> set:
        """Ids of the images with an annotation."""
        return {each["image_id"] for each in self.content["annotations"]}

    def image_ids_by_class(self) -> dict[int, list]:
        """Category id -> ids of the images with such an object, both in the order of the ids in the file."""
        with_class: dict[int, set] = {category["id"]: set() for category in self._categories()}
        for each in self.objects:
            with_class[each["category_id"]].add(each["image_id"])
        return {
            category_id: [image["id"] for image in self.images if image["id"] in ids]
            for category_id, ids in with_class.items()
        }

    def name_of(self, category_id: int) -> str:
        return next(category["name"] for category in self._categories() if category["id"] == category_id)

    def with_objects(self, annotations: list[dict]) -> "Labels":
        """The images of these annotations, with them alone."""
        shown = {each["image_id"] for each in annotations}
        return self._with([image for image in self.images if image["id"] in shown], annotations)

    def _with(self, images: list[dict], annotations: list[dict]) -> "Labels":
        content = {**self.content, "images": images, "annotations": annotations}
        return Labels(content, self.image_folder, self.stem)

    def _categories(self) -> list[dict]:
        return sorted(self.content["categories"], key=lambda category: category["id"])


def fraction(labels: Labels, *, percent: float, seed: int) -> set:
    """A share of the images, with the numbers of Soft Teacher's script (COCO-partial).

    With one seed the smaller shares are parts of the larger ones.

    Args:
        labels: all of them.
        percent: in (0, 100].
        seed: the fold.

    Returns:
        the ids of ``int(percent / 100 * number of images)`` images.

    Raises:
        ValueError: if that is none.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"{percent:g} percent of the labels; give more than 0 and at most 100.")
    size = int(percent / 100.0 * len(labels.images))
    if not size:
        raise ValueError(
            f"{percent:g} percent of the {len(labels.images)} images of {labels.stem}.json is not a single one; "
            "take more."
        )
    chosen = np.random.RandomState(seed).choice(len(labels.images), size=size, replace=False)
    return {labels.images[i]["id"] for i in chosen}


def images_per_class(labels: Labels, *, count: int, seed: int) -> set:
    """At least ``count`` images with an object of each class.

    Rare classes choose first, and their images count for others.

    Args:
        labels: all of them.
        count: images for each class.
        seed: of the choice.

    Returns:
        the ids of the images.

    Raises:
        ValueError: if a class has fewer.
    """
    random = np.random.RandomState(seed)
    by_class = labels.image_ids_by_class()
    chosen: set = set()
    for category_id in sorted(by_class, key=lambda each: (len(by_class[each]), each)):
        candidates = by_class[category_id]
        if len(candidates) < count:
            raise ValueError(
                f"The class '{labels.name_of(category_id)}' is in {len(candidates)} images of {labels.stem}.json, "
                f"fewer than the {count} asked for."
            )
        missing = count - sum(image_id in chosen for image_id in candidates)
        free = [image_id for image_id in candidates if image_id not in chosen]
        if missing > 0:
            chosen.update(free[i] for i in random.permutation(len(free))[:missing])
    return chosen


def shots(labels: Labels, *, count: int, seed: int) -> Labels:
    """Exactly ``count`` objects of each class, as in few-shot detection (TFA).

    Each class takes random images whole as long as they fit, and single objects only where that is not enough.
    What else is in these images is not labelled, as in TFA.

    Args:
        labels: all of them.
        count: objects of each class.
        seed: of the choice.

    Raises:
        ValueError: if a class has fewer.
    """
    random = np.random.RandomState(seed)
    objects_of: dict[tuple, list[dict]] = {}
    for each in labels.objects:
        objects_of.setdefault((each["category_id"], each["image_id"]), []).append(each)
    chosen: set = set()
    for category_id, image_ids in labels.image_ids_by_class().items():
        own = {image_id: objects_of[category_id, image_id] for image_id in image_ids}
        available = sum(map(len, own.values()))
        if available < count:
            raise ValueError(
                f"The class '{labels.name_of(category_id)}' has {available} objects in {labels.stem}.json, fewer "
                f"than the {count} asked for."
            )
        taken: list[dict] = []
        left_over: list[dict] = []
        for i in random.permutation(len(image_ids)):
            objects = own[image_ids[i]]
            fits = len(taken) + len(objects) <= count
            (taken if fits else left_over).extend(objects)
        taken += left_over[: count - len(taken)]
        chosen.update(each["id"] for each in taken)
    return labels.with_objects([each for each in labels.objects if each["id"] in chosen])


def hold_out(labels: Labels, *, share: float, seed: int) -> tuple[Labels, Labels]:
    """Divide labels into a part to train on and a part to choose settings by.

    Every class stays in the first part; the second gets one image of each class before it gets others, as far as
    its size allows.

    Args:
        labels: all of them.
        share: of the images for the second part, in (0, 1).
        seed: of the choice.

    Returns:
        both parts.

    Raises:
        ValueError: if there are not enough images for two parts.
    """
    if not 0 < share < 1:
        raise ValueError(f"The held-out share of the labels is {share:g}; it must be between 0 and 1.")
    classes_of: dict = {image["id"]: set() for image in labels.images}
    for each in labels.objects:
        classes_of[each["image_id"]].add(each["category_id"])
    order = np.random.RandomState(seed).permutation(len(labels.images))
    shuffled = [labels.images[i]["id"] for i in order]
    remaining = Counter(category for classes in classes_of.values() for category in classes)
    size = max(1, round(share * len(shuffled)))
    held: set = set()
    seen: set = set()
    for only_new_classes in (True, False):
        for image_id in shuffled:
            classes = classes_of[image_id]
            if len(held) >= size or image_id in held or (only_new_classes and classes <= seen):
                continue
            if all(remaining[category] > 1 for category in classes):
                held.add(image_id)
                seen |= classes
                remaining.subtract(classes)
    rest = set(shuffled) - held
    if not seen or not any(classes_of[image_id] for image_id in rest):
        raise ValueError(
            f"The {len(shuffled)} images of {labels.stem}.json are too few to hold some out: a class of each must "
            "stay in another image; label more."
        )
    return labels.part(rest), labels.part(held)
