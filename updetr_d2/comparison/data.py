"""The data of a comparison: checked first, then divided; the parts are files that trainings read."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from updetr_d2.comparison.plan import Subset
from updetr_d2.data.datasets import label_splits
from updetr_d2.data.datasets.label_splits import Labels
from updetr_d2.data.datasets.names import load_dataset_dicts
from updetr_d2.utils.files import write_text

MIN_TEST_IMAGES = 5
_TEST_SEED = 0


@dataclass(frozen=True)
class Data:
    """Labels and images of a comparison.

    Attributes:
        train: labels to train on.
        test: labels to measure on, which nothing is chosen by.
        unlabeled: name of the data set without labels; "" without any.
        num_unlabeled: its images.
        notes: what people should know of it, in a sentence each.
    """

    train: Labels
    test: Labels
    unlabeled: str
    num_unlabeled: int
    notes: list[str]


def read_data(*, labels: str, test: str | None, unlabeled: str | None, test_share: float) -> Data:
    """Read, divide where there is no test set, and check.

    Args:
        labels: ``JSON@IMAGE_FOLDER``.
        test: likewise; None takes a part of the labels.
        unlabeled: name of a data set, such as "folder:/data/photos"; None for none.
        test_share: of the labels that are for testing where there is no test set.

    Raises:
        ValueError: naming the option, and what is wrong.
    """
    train = Labels.read(labels, option="--labels")
    notes = []
    if test is None:
        train, held_out = label_splits.hold_out(train, share=test_share, seed=_TEST_SEED)
        notes.append(
            f"No --test: {len(held_out.images)} of the {len(train.images) + len(held_out.images)} labelled images "
            "were taken out to measure on."
        )
    else:
        held_out = Labels.read(test, option="--test")
    _check_labels(train, held_out)
    same = _same_files(train, held_out)
    if same:
        raise ValueError(
            f"{len(same)} images of --test are among those of --labels, such as {same[0]}: their results would "
            "be too good; take them out of one of the two."
        )
    num_unlabeled = 0
    if unlabeled:
        num_unlabeled = len(load_dataset_dicts([unlabeled], filter_empty=False, key="--unlabeled"))
    absent = [name for name, count in held_out.objects_per_class().items() if not count]
    if absent:
        notes.append(f"No object of {', '.join(absent)} is in the test set: these classes do not count.")
    if len(held_out.images) < 20:
        notes.append(f"With {len(held_out.images)} test images, results depend on which images these are.")
    return Data(train, held_out, unlabeled or "", num_unlabeled, notes)


def _check_labels(train: Labels, test: Labels) -> None:
    if train.class_names != test.class_names:
        raise ValueError(
            f"--labels and --test have different classes ({', '.join(train.class_names[:5])} and "
            f"{', '.join(test.class_names[:5])}); they must have the same, in the same order."
        )
    for option, labels in (("--labels", train), ("--test", test)):
        if not labels.objects:
            raise ValueError(f"{option} has {len(labels.images)} images but not a single object.")
    if len(test.images) < MIN_TEST_IMAGES:
        raise ValueError(
            f"There are {len(test.images)} images to measure on; at least {MIN_TEST_IMAGES} are needed: label "
            "more, or give --test."
        )


def _same_files(train: Labels, test: Labels) -> list[str]:
    """Images of the test set that have the bytes of one to train on."""
    known = {_digest(train, image) for image in train.images}
    return [image["file_name"] for image in test.images if _digest(test, image) in known]


def _digest(labels: Labels, image: dict) -> str:
    with open(os.path.join(labels.image_folder, image["file_name"]), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def write_part(labels: Labels, path: Path) -> str:
    """Write labels as a file for trainings, unless it is there with the same content.

    Returns:
        the name for ``DATASETS``.

    Raises:
        ValueError: if it is there with another content: the comparison was begun with other labels.
    """
    path = path.absolute()
    text = json.dumps(labels.content)
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{path} was made from other labels or settings; give those of before, or another --output."
            )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return f"coco:{path}@{labels.image_folder}"


def write_subsets(
    labels: Labels, folder: Path, *, percents: Sequence[float], seeds: Sequence[int]
) -> list[Subset]:
    """Write the labels of every seed and fraction; all of them, where a fraction is 100, once.

    Raises:
        ValueError: if a fraction has no object, or lacks images.
    """
    subsets = []
    for percent in sorted(percents):
        for seed in seeds:
            part = labels
            name = f"{labels.stem}.json"
            if percent < 100:
                part = labels.part(label_splits.fraction(labels, percent=percent, seed=seed))
                name = f"{labels.stem}.{seed}@{percent:g}.json"
            if not part.objects:
                raise ValueError(
                    f"{percent:g} percent of the labels, seed {seed}, are images without a single object; take "
                    "more (--percent)."
                )
            subsets.append(Subset(percent, seed, len(part.images), write_part(part, folder / name)))
    return subsets


def write_tuning(labels: Labels, folder: Path, *, share: float) -> tuple[str, str]:
    """Write the two parts of the labels that learning rates are chosen on; names for ``DATASETS``."""
    train, held_out = label_splits.hold_out(labels, share=share, seed=1)
    return (
        write_part(train, folder / f"{labels.stem}-train.json"),
        write_part(held_out, folder / f"{labels.stem}-held-out.json"),
    )
