"""What a detector does wrong, by the kinds of TIDE (Bolya et al., ECCV 2020), and which classes it confuses.

A prediction that matches no free true box of its class at an IoU of 0.5 is, in this order:

- localization: its best overlap with a true box of its class is in [0.1, 0.5];
- class: it overlaps a true box of another class by 0.5 or more;
- duplicate: it overlaps a true box of its class by 0.5 or more, which a better prediction has taken;
- background: it overlaps no true box by more than 0.1;
- both: anything else, such as a bad box of another class.

A true box is missed if nothing matches it and no localization or class error points at it. What each kind costs
is the AP50 that mending all errors of this kind alone would add: wrong boxes and classes become right (one for
each true box that is free), duplicates, background and both are removed, missed objects are not asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from updetr_d2.evaluation.detection_matching import (
    MATCH_IOU,
    RECALLS,
    ImageResult,
    RankedDetections,
    best_threshold,
    match,
    match_classes,
    mean_average_precision,
    ranked_by_class,
)

BACKGROUND_IOU = 0.1
RIGHT, IGNORED, MISSED = "right", "ignored", "missed"
WRONG_KINDS = ("localization", "class", "duplicate", "background", "both")
ERROR_KINDS = (*WRONG_KINDS, MISSED)


@dataclass(frozen=True)
class ImageErrors:
    """The kinds of one image.

    Attributes:
        kinds: ``[P]`` :data:`RIGHT`, :data:`IGNORED` (on a crowd) or one of :data:`WRONG_KINDS`.
        targets: ``[P]`` index of the true box that a prediction matches, or should have; -1 without one.
        missed: ``[G]``.
    """

    kinds: list[str]
    targets: np.ndarray
    missed: np.ndarray


def classify(result: ImageResult) -> ImageErrors:
    """The kind of each prediction and which true boxes are missed."""
    ious = result.ious()
    matches = match_classes(result, ious)
    taken = np.isin(np.arange(len(result.true_boxes)), matches)
    same = result.classes[:, None] == result.true_classes[None, :]
    real = ~result.crowd
    kinds: list[str] = []
    targets = matches.copy()
    excused = taken.copy()
    for i, index in enumerate(matches):
        if index >= 0:
            kinds.append(IGNORED if result.crowd[index] else RIGHT)
            continue
        kind, target = _kind(ious[i], own=same[i] & real, others=~same[i] & real, taken=taken)
        kinds.append(kind)
        targets[i] = target
        if kind in ("localization", "class"):
            excused[target] = True
    return ImageErrors(kinds, targets, ~excused & real)


def _kind(ious: np.ndarray, *, own: np.ndarray, others: np.ndarray, taken: np.ndarray) -> tuple[str, int]:
    """Kind and target of a prediction that matches nothing."""
    best_own, at_own = _best(ious, own)
    best_other, at_other = _best(ious, others)
    if BACKGROUND_IOU <= best_own <= MATCH_IOU:
        return "localization", at_own
    if best_other >= MATCH_IOU:
        return "class", at_other
    best_taken, at_taken = _best(ious, own & taken)
    if best_taken >= MATCH_IOU:
        return "duplicate", at_taken
    if max(best_own, best_other) <= BACKGROUND_IOU:
        return "background", -1
    return "both", at_other


def _best(ious: np.ndarray, allowed: np.ndarray) -> tuple[float, int]:
    if not allowed.any():
        return 0.0, -1
    index = int(np.where(allowed, ious, -1.0).argmax())
    return float(ious[index]), index


@dataclass(frozen=True)
class ErrorSummary:
    """The errors of a detector on a test set.

    Attributes:
        ap50: mean AP at an IoU of 0.5, in percent.
        threshold: score with the best F1, from which on predictions are counted.
        counts: number of predictions or objects by kind, with :data:`RIGHT`.
        costs: AP50 that mending a kind would add, in percent.
        class_names: of the rows and columns of ``confusion``.
        confusion: ``[K + 1, K + 1]`` objects of a true class (row) found as a class (column); the last row counts
            predictions on background, the last column missed objects.
        class_precision: name of a class with objects -> ``[101]`` at recalls from 0 to 1; the mean is its AP50.
    """

    ap50: float
    threshold: float
    counts: dict[str, int]
    costs: dict[str, float]
    class_names: list[str]
    confusion: np.ndarray
    class_precision: dict[str, np.ndarray] = field(repr=False)

    @property
    def precision(self) -> np.ndarray:
        """``[101]`` mean over classes at recalls from 0 to 1."""
        return np.mean(list(self.class_precision.values()) or [np.zeros(len(RECALLS))], axis=0)

    def to_json(self) -> dict:
        """Plain values for a file."""
        return {
            "AP50": self.ap50,
            "score_threshold": self.threshold,
            "counts": self.counts,
            "AP50_costs": self.costs,
            "class_names": self.class_names,
            "confusion": self.confusion.tolist(),
            "precision_at_recalls": {
                name: [round(float(value), 5) for value in values]
                for name, values in self.class_precision.items()
            },
        }

    @classmethod
    def from_json(cls, content: dict) -> "ErrorSummary":
        """Back from :meth:`to_json`; the file may be damaged, or come from others.

        Raises:
            ValueError: if something is not as :meth:`to_json` writes it.
        """
        try:
            names = [str(name) for name in content["class_names"]]
            summary = cls(
                ap50=float(content["AP50"]),
                threshold=float(content["score_threshold"]),
                counts={kind: int(content["counts"][kind]) for kind in (RIGHT, *ERROR_KINDS)},
                costs={kind: float(content["AP50_costs"][kind]) for kind in ERROR_KINDS},
                class_names=names,
                confusion=np.array(content["confusion"], dtype=np.int64),
                class_precision={
                    str(name): np.array(values, dtype=float)
                    for name, values in content["precision_at_recalls"].items()
                },
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"it is no summary of errors ({error!r})") from error
        if summary.confusion.shape != (len(names) + 1,) * 2:
            raise ValueError("its confusion of classes has another size than its classes")
        if any(values.shape != RECALLS.shape for values in summary.class_precision.values()):
            raise ValueError(f"its precisions are not at {len(RECALLS)} recalls")
        numbers = [summary.ap50, summary.threshold, *summary.costs.values()]
        if not np.isfinite([*numbers, *summary.precision]).all():
            raise ValueError("its numbers are not finite")
        return summary


def summarize(results: Sequence[ImageResult], classes: dict[int, str]) -> ErrorSummary:
    """Count and weigh the errors of a detector.

    Args:
        results: of all images of the test set.
        classes: category id -> name.
    """
    errors = [classify(result) for result in results]
    ranked = ranked_by_class(results, [match_classes(result, result.ious()) for result in results])
    ap50 = mean_average_precision(ranked)
    threshold = best_threshold(ranked)
    counts = dict.fromkeys((RIGHT, *ERROR_KINDS), 0)
    for result in results:
        shown = above(result, threshold)
        found = classify(shown)
        for kind in found.kinds:
            if kind != IGNORED:
                counts[kind] += 1
        counts[MISSED] += int(found.missed.sum())
    costs = {
        kind: mean_average_precision(_mended(results, errors, ranked, kind)) - ap50 for kind in ERROR_KINDS
    }
    names = [classes[category] for category in sorted(classes)]
    return ErrorSummary(
        ap50,
        threshold,
        counts,
        costs,
        names,
        confusion_matrix(results, sorted(classes), threshold),
        {classes[category]: each.precision_at_recalls() for category, each in ranked.items()},
    )


def above(result: ImageResult, threshold: float) -> ImageResult:
    """The image with the predictions that have at least a score."""
    count = int((result.scores >= threshold).sum())
    return ImageResult(
        result.image_id,
        result.boxes[:count],
        result.scores[:count],
        result.classes[:count],
        result.true_boxes,
        result.true_classes,
        result.crowd,
    )


def _mended(
    results: Sequence[ImageResult],
    errors: Sequence[ImageErrors],
    ranked: dict[int, RankedDetections],
    mended: str,
) -> dict[int, RankedDetections]:
    """The ranking of every class if there were no errors of one kind."""
    num_true = {category: each.num_true for category, each in ranked.items()}
    pairs: dict[int, list[tuple[float, bool]]] = {category: [] for category in ranked}
    for result, found in zip(results, errors):
        if mended == MISSED:
            for category in result.true_classes[found.missed].tolist():
                num_true[category] -= 1
        free = np.ones(len(result.true_boxes), dtype=bool)
        free[[t for t, kind in zip(found.targets, found.kinds) if kind == RIGHT]] = False
        for score, category, kind, target in zip(
            result.scores.tolist(), result.classes.tolist(), found.kinds, found.targets
        ):
            right = kind == RIGHT
            if kind == mended:
                if kind not in ("localization", "class") or not free[target]:
                    continue
                free[target] = False
                category, right = int(result.true_classes[target]), True
            if kind != IGNORED and category in pairs:
                pairs[category].append((score, right))
    return {
        category: RankedDetections.of(pairs[category], count)
        for category, count in num_true.items()
        if count or pairs[category]
    }


def confusion_matrix(
    results: Sequence[ImageResult], categories: Sequence[int], threshold: float
) -> np.ndarray:
    """Objects by true and predicted class, of predictions with at least a score, matched without regard to class.

    Args:
        results: of the images.
        categories: ids in the order of rows and columns.
        threshold: lowest score.

    Returns:
        ``[K + 1, K + 1]``, see :class:`ErrorSummary`.
    """
    place = {category: i for i, category in enumerate(categories)}
    counts = np.zeros((len(categories) + 1, len(categories) + 1), dtype=int)
    for result in results:
        shown = above(result, threshold)
        ious = shown.ious()
        matches = match(ious, np.ones_like(ious, dtype=bool), shown.crowd, threshold=MATCH_IOU)
        for category, index in zip(shown.classes.tolist(), matches):
            if index < 0:
                counts[-1, place[category]] += 1
            elif not shown.crowd[index]:
                counts[place[int(shown.true_classes[index])], place[category]] += 1
        for index in np.flatnonzero(~shown.crowd):
            if index not in matches:
                counts[place[int(shown.true_classes[index])], -1] += 1
    return counts
