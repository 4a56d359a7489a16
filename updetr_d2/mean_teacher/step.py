"""The training step of a mean teacher (Tarvainen and Valpola, NeurIPS 2017; Liu et al., ICLR 2021).

The teacher, an average of the student's weights, labels the weak views of unlabeled images; the student learns
these labels on the strong views, beside those of people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from updetr_d2.data.dataset_mappers.two_views import WEAK_IMAGE, is_unlabeled
from updetr_d2.mean_teacher.guards import CollapseGuard, mean_score, precision_and_recall
from updetr_d2.mean_teacher.pseudo_labels import (
    PseudoLabels,
    ScoreThresholds,
    candidates,
    carry_over,
    divide,
)


@dataclass(frozen=True)
class Ramp:
    """Weight of the unlabeled images over a training: 0, then a straight line to ``weight``.

    Attributes:
        weight: at the end.
        burn_in: iterations of 0.
        length: iterations of the line.
    """

    weight: float
    burn_in: int
    length: int

    def __call__(self, iteration: int) -> float:
        done = iteration - self.burn_in + 1
        return self.weight * min(max(done / max(self.length, 1), 0.0), 1.0)


class MeanTeacherStep:
    """Losses of a batch of labeled and unlabeled images.

    Args:
        teacher: labels weak views; somebody else updates it.
        ramp: weight of the unlabeled losses.
        thresholds: scores of labels.
        uncertain_score: boxes from this score to the threshold are uncertain, those below do not exist.
        nms_threshold: see :func:`.pseudo_labels.candidates`.
        min_visible: see :func:`.pseudo_labels.carry_over`.
        drop_iou: see ``BatchTargets.drop_iou``.
        guard: told of the classes of each iteration.

    Attributes:
        last_samples: the unlabeled samples of the last step, with what the student has learned of them
            (``instances``, ``uncertain_boxes``).
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: nn.Module,
        ramp: Ramp,
        thresholds: ScoreThresholds,
        uncertain_score: float,
        nms_threshold: float,
        min_visible: float,
        drop_iou: float,
        guard: CollapseGuard,
    ) -> None:
        self.teacher = teacher
        self.ramp = ramp
        self.thresholds = thresholds
        self.uncertain_score = uncertain_score
        self.nms_threshold = nms_threshold
        self.min_visible = min_visible
        self.drop_iou = drop_iou
        self.guard = guard
        self.last_samples: list[dict] = []
        self._scalars: dict[str, float] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, teacher: nn.Module) -> dict[str, Any]:
        options, num_classes = cfg.SOLVER.MEAN_TEACHER, cfg.MODEL.DETR.NUM_CLASSES
        return {
            "teacher": teacher,
            "ramp": Ramp(options.WEIGHT, options.BURN_IN_ITERS, options.RAMP_ITERS),
            "thresholds": ScoreThresholds(
                num_classes, threshold=options.SCORE_THRESH, quantile=options.CLASS_QUANTILE
            ),
            "uncertain_score": options.UNCERTAIN_SCORE,
            "nms_threshold": options.NMS_THRESH,
            "min_visible": options.MIN_VISIBLE,
            "drop_iou": options.DROP_LOSS_IOU,
            "guard": CollapseGuard(num_classes, options.COLLAPSE_ITERS),
        }

    def __call__(
        self, model: nn.Module, batch: list[dict], iteration: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Args:
            model: the student, perhaps wrapped for several processes.
            batch: labeled samples, and unlabeled ones of ``TwoViewDatasetMapper``, which get ``instances`` and
                ``uncertain_boxes``.
            iteration: of the run, from 0.

        Returns:
            weighted losses, those of unlabeled images with the suffix ``_pseudo``, and scalars about the labels.
        """
        labeled, unlabeled = self._divide(batch, iteration)
        if not unlabeled:
            return model(labeled), {}
        weight = self.ramp(iteration)
        problem: FloatingPointError | None = None
        pseudo_losses: dict[str, Tensor] = {}
        try:
            pseudo_losses = model(unlabeled)
        except FloatingPointError as error:  # raised below: other processes go on, and exchange numbers
            problem = error
        # The labeled images last, so that the model's own metrics are theirs.
        losses = model(labeled)
        if problem is not None:
            raise problem
        losses = {**losses, **{f"{name}_pseudo": weight * value for name, value in pseudo_losses.items()}}
        device = next(iter(losses.values())).device
        scalars = {"pseudo_weight": weight, **self._scalars}
        return losses, {name: torch.tensor(value).to(device) for name, value in scalars.items()}

    def split(
        self, batch: list[dict], iteration: int, split_samples: Callable[[list[dict]], list[list[dict]]]
    ) -> list[list[dict]]:
        """Parts of a batch for gradient accumulation, each with its share of both kinds of images.

        The teacher labels all images at once, so the parts know how much there is to learn in all of them.

        Args:
            batch, iteration: as for a call, which each part is given to later.
            split_samples: splits samples of one kind.
        """
        labeled, unlabeled = self._divide(batch, iteration)
        parts = split_samples(labeled)
        if not unlabeled:
            return parts
        return [part + others for part, others in zip(parts, split_samples(unlabeled), strict=True)]

    def _divide(self, batch: list[dict], iteration: int) -> tuple[list[dict], list[dict]]:
        """Labeled samples, and those that the teacher has labeled: none before its time has come."""
        labeled = [sample for sample in batch if not is_unlabeled(sample)]
        unlabeled = [sample for sample in batch if is_unlabeled(sample)]
        if unlabeled and all("instances" in sample for sample in unlabeled):
            return labeled, unlabeled  # a part of a batch that has been labeled
        self.last_samples = unlabeled
        if not unlabeled or not self.ramp(iteration):
            return labeled, []
        self._scalars = self.label(unlabeled)
        return labeled, unlabeled

    def label(self, samples: list[dict]) -> dict[str, float]:
        """Let the teacher label unlabeled samples in place; returns what is to be logged about it."""
        labels = self.predict([sample[WEAK_IMAGE] for sample in samples])
        num_uncertain = 0
        for sample, each in zip(samples, labels):
            sample["instances"], sample["uncertain_boxes"] = carry_over(
                each, sample, min_visible=self.min_visible
            )
            sample["drop_iou"] = self.drop_iou
            num_uncertain += len(each.uncertain)
        found = [each.certain for each in labels]
        self.guard.observe([label for each in found for label in each.pred_classes.tolist()])
        scalars = {
            "pseudo_boxes": sum(map(len, found)) / len(samples),
            "pseudo_uncertain_boxes": num_uncertain / len(samples),
            "pseudo_score": mean_score(found),
        }
        known = [i for i, sample in enumerate(samples) if "true_instances" in sample]
        if known:
            true = [samples[i]["true_instances"] for i in known]
            scalars["pseudo_precision"], scalars["pseudo_recall"] = precision_and_recall(
                [found[i] for i in known], true
            )
        return scalars

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[PseudoLabels]:
        """What the teacher says of weak views ``[3, h, w]``, in their px."""
        # Without the size of the original, boxes are in the px of the image given.
        outputs = self.teacher([{"image": image} for image in images])
        found: list[Instances] = [
            candidates(output["instances"], min_score=self.uncertain_score, nms_threshold=self.nms_threshold)
            for output in outputs
        ]
        if self.thresholds.quantile:
            own = [(each.pred_classes.tolist(), each.scores.tolist()) for each in found]
            for process in comm.all_gather(own):  # the same thresholds everywhere
                for classes, scores in process:
                    self.thresholds.observe(classes, scores)
        thresholds = self.thresholds.per_class()
        return [divide(each, thresholds) for each in found]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the teacher."""
        return {"thresholds": self.thresholds.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds.load_state_dict(state["thresholds"])
