"""From a teacher's detections on the weak view to what a student learns on the strong view."""

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor
from torchvision.ops import nms

from updetr_d2.data.transforms.views import map_boxes, visible_share


@dataclass
class PseudoLabels:
    """What a teacher says of an image.

    Attributes:
        certain: ``pred_boxes``, ``scores`` and ``pred_classes`` that count as labels.
        uncertain: Boxes that are neither objects nor background.
    """

    certain: Instances
    uncertain: Boxes


class ScoreThresholds:
    """Which score a box needs to be a label: one number, or for rare classes less.

    With ``quantile`` q the threshold of a class is the q-quantile of its last scores, at most ``threshold``: of a
    class that the teacher never is sure of, the best of its boxes count nevertheless.

    Args:
        num_classes: K.
        threshold: for all classes, in [0, 1].
        quantile: in [0, 1); 0 turns it off.
        memory: scores of a class that are remembered.
    """

    def __init__(
        self, num_classes: int, *, threshold: float, quantile: float = 0.0, memory: int = 100
    ) -> None:
        self.threshold = threshold
        self.quantile = quantile
        self.memory = memory
        self._scores: list[list[float]] = [[] for _ in range(num_classes)]

    def observe(self, classes: list[int], scores: list[float]) -> None:
        """Remember the scores of boxes, in their order."""
        for label, score in zip(classes, scores):
            self._scores[label] = [*self._scores[label], score][-self.memory :]

    def per_class(self) -> Tensor:
        """float32 ``[K]``"""
        thresholds = torch.full((len(self._scores),), self.threshold)
        for label, scores in enumerate(self._scores if self.quantile else ()):
            if scores:
                thresholds[label] = torch.tensor(scores).quantile(self.quantile).clamp(max=self.threshold)
        return thresholds

    def state_dict(self) -> dict[str, Any]:
        return {"scores": [list(scores) for scores in self._scores]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scores = [list(scores) for scores in state["scores"]]


def candidates(detections: Instances, *, min_score: float, nms_threshold: float) -> Instances:
    """The detections that matter, best first: with a score, and the best one only of those that overlap.

    Args:
        detections: ``pred_boxes``, ``scores``, ``pred_classes``, on any device.
        min_score: lowest score.
        nms_threshold: of boxes with a larger IoU, whatever their classes, the best stays.

    Returns:
        float32 boxes on the CPU.
    """
    detections = detections.to("cpu")
    kept = Instances(
        detections.image_size,
        pred_boxes=Boxes(detections.pred_boxes.tensor.float()),
        scores=detections.scores.float(),
        pred_classes=detections.pred_classes,
    )
    kept = kept[kept.scores >= min_score]
    return kept[nms(kept.pred_boxes.tensor, kept.scores, nms_threshold)]


def divide(found: Instances, thresholds: Tensor) -> PseudoLabels:
    """Part candidates by their scores.

    A box with less than the score it needs is uncertain, unless it is another guess at an object that has a label:
    of the same class, and more than half of the smaller one of the two boxes is in both.

    Args:
        found: of :func:`candidates`.
        thresholds: ``[K]``, the score from which a box of a class is a label.
    """
    is_certain = found.scores >= thresholds[found.pred_classes]
    certain, rest = found[is_certain], found[~is_certain]
    smaller = torch.minimum(rest.pred_boxes.area()[:, None], certain.pred_boxes.area())
    common = pairwise_intersection(rest.pred_boxes, certain.pred_boxes)
    same_class = rest.pred_classes[:, None] == certain.pred_classes
    is_guess = (same_class & (common > 0.5 * smaller)).any(dim=1)
    return PseudoLabels(certain, rest.pred_boxes[~is_guess])


def carry_over(labels: PseudoLabels, sample: dict, *, min_visible: float) -> tuple[Instances, Boxes]:
    """Bring labels of the weak view to the strong view.

    Args:
        labels: of the weak view.
        sample: of ``TwoViewDatasetMapper``.
        min_visible: share of a box that must be inside of the strong view and not erased, else it becomes
            uncertain.

    Returns:
        ``gt_boxes``, ``gt_classes`` and ``scores`` of what is to be learned, and the uncertain boxes, both clipped
        to the strong view, float32, in its px.
    """
    size = (sample["image"].shape[-2], sample["image"].shape[-1])
    boxes = map_boxes(labels.certain.pred_boxes.tensor, sample["strong_from_weak"])
    visible = visible_share(boxes, size, sample["erased"]) >= min_visible
    learned = Instances(
        size,
        gt_boxes=Boxes(boxes[visible].float()),
        gt_classes=labels.certain.pred_classes[visible],
        scores=labels.certain.scores[visible],
    )
    learned.gt_boxes.clip(size)
    others = map_boxes(labels.uncertain.tensor, sample["strong_from_weak"])
    uncertain = Boxes(torch.cat((boxes[~visible], others)).float())
    uncertain.clip(size)
    return learned, uncertain[uncertain.nonempty()]
