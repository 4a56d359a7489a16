"""Which images and labels to look at: the best, the worst and random images, labels that may be wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from updetr_d2.evaluation.detection_errors import (
    RIGHT,
    WRONG_KINDS,
    ImageErrors,
    above,
    classify,
)
from updetr_d2.evaluation.detection_matching import MATCH_IOU, ImageResult

WORST, BEST, RANDOM = "worst", "best", "random"
NO_LABEL, OTHER_LABEL, NEVER_FOUND = "no label", "another label", "never found"
# Below it, nothing of a label is covered by what was found.
_UNCOVERED_IOU = 0.1


@dataclass(frozen=True)
class ImageCounts:
    """Of one image, at a score.

    Attributes:
        right: predictions that match.
        wrong: predictions that do not.
        missed: objects without a prediction, of their class or another, that could have been meant for them.
        unmatched: objects that no prediction matches.
    """

    right: int = 0
    wrong: int = 0
    missed: int = 0
    unmatched: int = 0

    def __add__(self, other: "ImageCounts") -> "ImageCounts":
        return ImageCounts(
            self.right + other.right,
            self.wrong + other.wrong,
            self.missed + other.missed,
            self.unmatched + other.unmatched,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where there is nothing and nothing is found."""
        total = 2 * self.right + self.wrong + self.unmatched
        return 2 * self.right / total if total else 1.0

    def describe(self) -> str:
        """Such as "3 right, 1 wrong, 2 missed"."""
        parts = ((self.right, "right"), (self.wrong, "wrong"), (self.missed, "missed"))
        return (
            ", ".join(f"{count} {name}" for count, name in parts if count) or "nothing there, nothing found"
        )


def count_image(result: ImageResult, errors: ImageErrors) -> ImageCounts:
    """The counts of an image whose predictions are those of a score and above."""
    right = errors.kinds.count(RIGHT)
    wrong = sum(kind in WRONG_KINDS for kind in errors.kinds)
    return ImageCounts(right, wrong, int(errors.missed.sum()), int((~result.crowd).sum()) - right)


def count_images(results: Sequence[ImageResult], threshold: float) -> list[ImageCounts]:
    """Of each image, for predictions with at least a score."""
    shown = [above(result, threshold) for result in results]
    return [count_image(each, classify(each)) for each in shown]


def choose_examples(counts: Sequence[ImageCounts], number: int, *, seed: int = 0) -> dict[str, list[int]]:
    """Images to look at, none of them twice.

    Args:
        counts: of each image, :func:`count_images`; those of several detectors may be added.
        number: of images of each group, at most.
        seed: of the random ones.

    Returns:
        group -> indices. :data:`WORST` have errors, :data:`BEST` something right, :data:`RANDOM` of the others.
    """
    indices = range(len(counts))
    worst = sorted(
        (i for i in indices if counts[i].wrong + counts[i].unmatched),
        key=lambda i: (counts[i].f1, -counts[i].wrong - counts[i].unmatched),
    )[:number]
    best = sorted(
        (i for i in indices if counts[i].right and i not in worst),
        key=lambda i: (-counts[i].f1, -counts[i].right),
    )[:number]
    others = [i for i in indices if i not in {*worst, *best}]
    drawn = np.random.default_rng(seed).permutation(len(others))[:number]
    return {WORST: worst, BEST: best, RANDOM: [others[i] for i in sorted(drawn.tolist())]}


@dataclass(frozen=True)
class Suspect:
    """A label that is missing, of the wrong class or of nothing, if the detector is right.

    Attributes:
        kind: :data:`NO_LABEL`, a confident prediction where nothing is labeled; :data:`OTHER_LABEL`, one on a
            label of another class; :data:`NEVER_FOUND`, a label that no prediction overlaps, whatever its score.
        index: of the image.
        box: ``[4]`` x, y, width, height in px; of the prediction or the label.
        score: of the prediction; 0 for labels that were never found.
        found: category id of the prediction, None without one.
        labeled: category id of the label, None without one.
    """

    kind: str
    index: int
    box: np.ndarray
    score: float
    found: int | None
    labeled: int | None


def find_suspects(results: Sequence[ImageResult], *, threshold: float, number: int) -> list[Suspect]:
    """Labels worth a second look.

    Args:
        results: of the images.
        threshold: score from which on a prediction is confident.
        number: of suspects of each kind, at most.

    Returns:
        the most confident first; of labels that were never found the largest first.
    """
    kinds: dict[str, list[Suspect]] = {NO_LABEL: [], OTHER_LABEL: [], NEVER_FOUND: []}
    for index, result in enumerate(results):
        shown = above(result, threshold)
        errors = classify(shown)
        ious = shown.ious()
        for i, kind in enumerate(errors.kinds):
            found, score = int(shown.classes[i]), float(shown.scores[i])
            if kind == "background":
                kinds[NO_LABEL].append(Suspect(NO_LABEL, index, shown.boxes[i], score, found, None))
            elif kind == "class" and ious[i, errors.targets[i]] >= MATCH_IOU:
                labeled = int(shown.true_classes[errors.targets[i]])
                kinds[OTHER_LABEL].append(Suspect(OTHER_LABEL, index, shown.boxes[i], score, found, labeled))
        covered = result.ious().max(axis=0, initial=0.0)
        for i in np.flatnonzero((covered < _UNCOVERED_IOU) & ~result.crowd).tolist():
            labeled = int(result.true_classes[i])
            kinds[NEVER_FOUND].append(Suspect(NEVER_FOUND, index, result.true_boxes[i], 0.0, None, labeled))
    kinds[NO_LABEL].sort(key=lambda each: -each.score)
    kinds[OTHER_LABEL].sort(key=lambda each: -each.score)
    kinds[NEVER_FOUND].sort(key=lambda each: -float(each.box[2] * each.box[3]))
    return [suspect for each in kinds.values() for suspect in each[:number]]
