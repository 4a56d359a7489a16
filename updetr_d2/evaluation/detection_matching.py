"""Which predictions of a detector are right: COCO's matching at one IoU, curves of precision and recall, AP."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

# COCO's recalls for the mean of precisions, and the most predictions of an image that count.
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100
MATCH_IOU = 0.5


@dataclass(frozen=True)
class ImageResult:
    """True and predicted boxes of one image; predictions are in descending order of their scores.

    Attributes:
        image_id: of the annotation file.
        boxes: ``[P, 4]`` predicted, x, y, width, height in px.
        scores: ``[P]``.
        classes: ``[P]`` predicted category ids.
        true_boxes: ``[G, 4]``.
        true_classes: ``[G]``.
        crowd: ``[G]``, whether a true box is a crowd, in which predictions are neither right nor wrong.
    """

    image_id: int | str
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    true_boxes: np.ndarray
    true_classes: np.ndarray
    crowd: np.ndarray

    def ious(self) -> np.ndarray:
        """``[P, G]``; for crowds the share of the prediction that is inside."""
        if not len(self.boxes) or not len(self.true_boxes):
            return np.zeros((len(self.boxes), len(self.true_boxes)))
        return np.asarray(mask_util.iou(self.boxes, self.true_boxes, self.crowd.astype(np.uint8)))


def read_results(content: dict, predictions: Iterable[dict]) -> list[ImageResult]:
    """Collect what an evaluation has written, image by image.

    Args:
        content: ground truth in COCO's format.
        predictions: of the file of results: ``image_id``, ``category_id``, ``bbox``, ``score``.

    Returns:
        all images of the ground truth, in its order.
    """
    found: dict = {image["id"]: [] for image in content["images"]}
    true: dict = {image["id"]: [] for image in content["images"]}
    for each in predictions:
        if each["image_id"] in found:
            found[each["image_id"]].append(each)
    for each in content["annotations"]:
        true[each["image_id"]].append(each)
    results = []
    for image_id, own in found.items():
        own = sorted(own, key=lambda each: -each["score"])[:MAX_DETECTIONS]
        labels = true[image_id]
        results.append(
            ImageResult(
                image_id,
                boxes=_boxes(own),
                scores=np.array([each["score"] for each in own], dtype=float),
                classes=np.array([each["category_id"] for each in own], dtype=int),
                true_boxes=_boxes(labels),
                true_classes=np.array([each["category_id"] for each in labels], dtype=int),
                crowd=np.array([bool(each.get("iscrowd")) for each in labels], dtype=bool),
            )
        )
    return results


def _boxes(entries: Sequence[dict]) -> np.ndarray:
    return np.array([each["bbox"] for each in entries], dtype=float).reshape(-1, 4)


def match(ious: np.ndarray, allowed: np.ndarray, crowd: np.ndarray, *, threshold: float) -> np.ndarray:
    """Give each prediction, best score first, the free true box that it overlaps most.

    Args:
        ious: ``[P, G]``.
        allowed: ``[P, G]``, which pairs may match.
        crowd: ``[G]``; these are taken only where nothing else is, and by any number of predictions.
        threshold: lowest IoU of a match.

    Returns:
        ``[P]`` indices of true boxes, -1 for predictions without one.
    """
    matches = np.full(len(ious), -1)
    free = ~crowd
    for i, row in enumerate(ious):
        for candidates in (free, crowd):
            overlaps = np.where(allowed[i] & candidates, row, -1.0)
            if len(overlaps) and overlaps.max() >= threshold:
                matches[i] = overlaps.argmax()
                break
        if matches[i] >= 0 and not crowd[matches[i]]:
            free[matches[i]] = False
    return matches


def match_classes(result: ImageResult, ious: np.ndarray, *, threshold: float = MATCH_IOU) -> np.ndarray:
    """:func:`match` within each class, as AP counts."""
    same = result.classes[:, None] == result.true_classes[None, :]
    return match(ious, same, result.crowd, threshold=threshold)


@dataclass(frozen=True)
class RankedDetections:
    """Predictions of one class over all images, best first.

    Attributes:
        scores: ``[N]``, descending.
        right: ``[N]``.
        num_true: true boxes that are no crowds.
    """

    scores: np.ndarray
    right: np.ndarray
    num_true: int

    @classmethod
    def of(cls, detections: Iterable[tuple[float, bool]], num_true: int) -> "RankedDetections":
        """From (score, right) in any order; equal scores keep it."""
        pairs = list(detections)
        scores = np.array([score for score, _ in pairs], dtype=float)
        right = np.array([is_right for _, is_right in pairs], dtype=bool)
        order = np.argsort(-scores, kind="mergesort")
        return cls(scores[order], right[order], num_true)

    def precision_at_recalls(self) -> np.ndarray:
        """``[101]`` highest precision at each of :data:`RECALLS` or beyond, 0 where it is not reached."""
        if not self.num_true:
            return np.zeros(len(RECALLS))
        true_positives = np.cumsum(self.right)
        recall = true_positives / self.num_true
        precision = true_positives / np.arange(1, len(recall) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS, side="left")
        reached = places < len(precision)
        return (
            np.where(reached, precision[np.minimum(places, len(precision) - 1)], 0.0)
            if len(precision)
            else np.zeros(len(RECALLS))
        )

    def average_precision(self) -> float:
        """In percent."""
        return 100 * float(self.precision_at_recalls().mean())


def ranked_by_class(
    results: Sequence[ImageResult], matches: Sequence[np.ndarray]
) -> dict[int, RankedDetections]:
    """Predictions of every class that has true boxes; those on crowds do not count.

    Args:
        results: of the images.
        matches: of :func:`match_classes`, for each of them.
    """
    num_true: dict[int, int] = {}
    pairs: dict[int, list] = {}
    for result, matched in zip(results, matches):
        for category in result.true_classes[~result.crowd].tolist():
            num_true[category] = num_true.get(category, 0) + 1
        for score, category, index in zip(result.scores, result.classes.tolist(), matched):
            if index < 0 or not result.crowd[index]:
                pairs.setdefault(category, []).append((float(score), bool(index >= 0)))
    return {
        category: RankedDetections.of(pairs.get(category, ()), num_true[category])
        for category in sorted(num_true)
    }


def mean_average_precision(ranked: dict[int, RankedDetections]) -> float:
    """Mean of the AP of all classes, in percent; 0 without any."""
    return float(np.mean([each.average_precision() for each in ranked.values()])) if ranked else 0.0


def best_threshold(ranked: dict[int, RankedDetections]) -> float:
    """The score from which on precision and recall over all classes have the best harmonic mean (F1).

    Returns:
        the score; 0.5 if nothing is right.
    """
    pairs = [pair for each in ranked.values() for pair in zip(each.scores.tolist(), each.right.tolist())]
    together = RankedDetections.of(pairs, sum(each.num_true for each in ranked.values()))
    true_positives = np.cumsum(together.right)
    if not len(true_positives) or not true_positives[-1]:
        return 0.5
    f1 = 2 * true_positives / (np.arange(1, len(true_positives) + 1) + together.num_true)
    return float(together.scores[f1.argmax()])
