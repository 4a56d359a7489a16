"""How good pseudo-labels are, and a warning when a teacher has collapsed."""

import logging
from collections import deque
from collections.abc import Sequence

import torch
from detectron2.structures import Instances, pairwise_iou

logger = logging.getLogger(__name__)

_ADVICE = (
    "start from better weights (pre-trained, or of a training on the labels: MODEL.WEIGHTS), train longer on "
    "labels alone (SOLVER.MEAN_TEACHER.BURN_IN_ITERS), give the unlabeled images less weight "
    "(SOLVER.MEAN_TEACHER.WEIGHT), or leave DATASETS.UNLABELED empty; docs/MEAN_TEACHER.md says more"
)


class CollapseGuard:
    """Says once that a teacher finds nothing any more, or one class only.

    Args:
        num_classes: K; with one class only missing boxes are a sign.
        window: iterations in a row.
    """

    def __init__(self, num_classes: int, window: int) -> None:
        self.num_classes = num_classes
        self.window = window
        self._classes: deque[frozenset[int]] = deque(maxlen=window)
        self._said = False

    def observe(self, classes: Sequence[int]) -> None:
        """Look at the classes of all pseudo-labels of an iteration."""
        self._classes.append(frozenset(classes))
        if self._said or len(self._classes) < self.window:
            return
        seen = frozenset().union(*self._classes)
        if not seen:
            problem = "has found no box at all"
            first = "lower SOLVER.MEAN_TEACHER.SCORE_THRESH or set SOLVER.MEAN_TEACHER.CLASS_QUANTILE, "
        elif len(seen) == 1 < self.num_classes:
            problem, first = f"has found boxes of class {min(seen)} only", ""
        else:
            return
        self._said = True
        logger.warning(
            "The mean teacher %s for %d iterations; its labels teach nothing: %s%s.",
            *(problem, self.window, first, _ADVICE),
        )


def precision_and_recall(
    found: Sequence[Instances], true: Sequence[Instances], *, iou_threshold: float = 0.5
) -> tuple[float, float]:
    """Of the pseudo-labels the share that is right, and of the objects the share that is found.

    Boxes are taken by score; each is right if it overlaps an object of its class that no better one has taken.

    Args:
        found: ``pred_boxes``, ``scores``, ``pred_classes`` of each image.
        true: ``gt_boxes``, ``gt_classes`` of the same images and in the same px.
        iou_threshold: lowest IoU of a right box.

    Returns:
        numbers in [0, 1]; NaN where there is nothing to divide by.
    """
    num_right = 0
    for predictions, objects in zip(found, true):
        iou = pairwise_iou(predictions.pred_boxes, objects.gt_boxes)
        iou[predictions.pred_classes[:, None] != objects.gt_classes] = 0
        for index in predictions.scores.argsort(descending=True).tolist() if len(objects) else ():
            best = int(iou[index].argmax())
            if iou[index, best] >= iou_threshold:
                num_right += 1
                iou[:, best] = 0
    num_found, num_true = (sum(map(len, each)) for each in (found, true))
    return (
        num_right / num_found if num_found else float("nan"),
        num_right / num_true if num_true else float("nan"),
    )


def mean_score(found: Sequence[Instances]) -> float:
    """Mean score of all pseudo-labels; NaN if there are none."""
    return torch.cat([each.scores for each in found]).mean().item()
