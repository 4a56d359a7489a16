"""Set prediction loss (DETR, arXiv 2005.12872, Section 3.1): match, then add up the terms of all layers."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from updetr_d2.modeling import losses, mask_losses
from updetr_d2.modeling.loss_terms import (
    BoxLoss,
    FeatureLoss,
    FocalClassLoss,
    LossTerm,
    MaskLoss,
    SoftmaxClassLoss,
)
from updetr_d2.modeling.matcher import Matches, build_matcher
from updetr_d2.modeling.outputs import AuxiliaryOutputs, Outputs
from updetr_d2.modeling.targets import BatchTargets

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Criteria: modules (Outputs, BatchTargets) -> (dict of weighted losses, dict of metrics).
"""

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Loss terms for MODEL.CRITERION.LOSSES: functions cfg -> LossTerm.
"""


def build_criterion(cfg: CfgNode) -> nn.Module:
    """Build the criterion named by ``cfg.MODEL.CRITERION.NAME``."""
    return CRITERION_REGISTRY.get(cfg.MODEL.CRITERION.NAME)(cfg)


@LOSS_REGISTRY.register()
def class_loss(cfg: CfgNode) -> LossTerm:
    """The class loss of ``MODEL.CRITERION.CLASS_LOSS``."""
    criterion, num_classes = cfg.MODEL.CRITERION, cfg.MODEL.DETR.NUM_CLASSES
    if criterion.CLASS_LOSS == "focal":
        return FocalClassLoss(
            num_classes=num_classes,
            alpha=criterion.FOCAL_ALPHA,
            gamma=criterion.FOCAL_GAMMA,
        )
    return SoftmaxClassLoss(num_classes=num_classes, eos_coef=criterion.EOS_COEF)


@LOSS_REGISTRY.register()
def box_loss(cfg: CfgNode) -> LossTerm:
    """L1 and GIoU."""
    return BoxLoss()


@LOSS_REGISTRY.register()
def feature_loss(cfg: CfgNode) -> LossTerm:
    """Reconstruction of patch features."""
    criterion = cfg.MODEL.CRITERION
    return FeatureLoss(distance=criterion.FEATURE_LOSS, last_layer_only=criterion.FEATURE_LAST_LAYER_ONLY)


@LOSS_REGISTRY.register()
def mask_loss(cfg: CfgNode) -> LossTerm:
    """Focal and dice loss of masks."""
    return MaskLoss(points=mask_losses.point_sampling(cfg))


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Match predictions with targets, layer by layer, and compute the loss terms of all layers together.

    Args:
        terms: what is computed of outputs that have it.
        matcher: callable (logits, boxes, targets) -> :class:`Matches`.
        weights: weight of each loss by name, such as ``{"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}``;
            1 for others.
        deep_supervision: losses on every decoder layer instead of the last only.
    """

    # The processes agree in each pass on whether there are losses.
    fails_together = True

    @configurable
    def __init__(
        self,
        *,
        terms: Mapping[str, LossTerm],
        matcher: Callable[[Tensor, Tensor, BatchTargets], Matches],
        weights: dict[str, float],
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.matcher = matcher
        self.weights = weights
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        criterion = cfg.MODEL.CRITERION
        return {
            "terms": {name: LOSS_REGISTRY.get(name)(cfg) for name in criterion.LOSSES},
            "matcher": build_matcher(cfg),
            "weights": {
                "loss_ce": criterion.CLASS_WEIGHT,
                "loss_bbox": criterion.BBOX_WEIGHT,
                "loss_giou": criterion.GIOU_WEIGHT,
                "loss_feature": criterion.FEATURE_WEIGHT,
                "loss_mask": criterion.MASK_WEIGHT,
                "loss_dice": criterion.DICE_WEIGHT,
            },
            "deep_supervision": cfg.MODEL.DETR.DEEP_SUPERVISION,
        }

    def forward(self, outputs: Outputs, targets: BatchTargets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Args:
            outputs: of the model, any float type; the losses are computed in float32.
            targets: padded targets of the B images; with ``features`` if there are ``outputs.features``, with
                ``masks`` if there are ``outputs.masks``.

        Returns:
            weighted scalar losses (suffix ``_0`` … ``_{L-2}`` for the layers before the last; those of auxiliary
            outputs have their suffix before that), and scalar metrics of the last layer that are logged but not
            trained: ``class_error`` (%), ``cardinality_error``.

        Raises:
            FloatingPointError: if something cannot be matched, in all processes alike; without a message in those
                that could.
        """
        if not self.deep_supervision:
            outputs = outputs.last_layer()
        problem, matched = None, []
        try:
            matches = self.matcher(outputs.logits, outputs.boxes, targets)
            matched = [self._match(each, targets) for each in outputs.auxiliary.values()]
        except FloatingPointError as error:
            problem = error
        # The one exchange of the processes within a step: where one of them fails, all do.
        num_boxes, failed = self.exchange(targets, failed=problem is not None)
        if failed:
            raise problem or FloatingPointError
        weighted = self._weighted_losses(outputs, targets, matches, num_boxes)
        for (suffix, auxiliary), (own_targets, pairs) in zip(outputs.auxiliary.items(), matched):
            copies = num_boxes * auxiliary.num_copies
            weighted.update(
                self._weighted_losses(auxiliary.outputs, own_targets, pairs, copies, f"_{suffix}")
            )
        last = matches.last_layer_only(len(outputs.logits))
        return weighted, self.metrics(outputs, targets, last)

    def _terms(self) -> Iterable[LossTerm]:
        # A ModuleDict does not tell of which class its modules are.
        return cast(Iterable[LossTerm], self.terms.values())

    def _weighted_losses(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor, suffix: str = ""
    ) -> dict[str, Tensor]:
        weighted = {}
        for term in self._terms():
            if not term.applies(outputs):
                continue
            for name, values in term(outputs, targets, matches, num_boxes).items():
                *before, last = (self.weights.get(name, 1.0) * values).unbind()
                weighted[f"{name}{suffix}"] = last
                weighted.update({f"{name}{suffix}_{i}": value for i, value in enumerate(before)})
        return weighted

    def _match(self, auxiliary: AuxiliaryOutputs, targets: BatchTargets) -> tuple[BatchTargets, Matches]:
        """What auxiliary outputs have to learn, and which of them which of it."""
        targets = dataclasses.replace(targets, group_size=None)
        if auxiliary.class_agnostic:
            targets = dataclasses.replace(targets, labels=torch.zeros_like(targets.labels))
        outputs, matches = auxiliary.outputs, auxiliary.matches
        if matches is None and auxiliary.assign is not None:
            matches = auxiliary.assign(targets)
        elif matches is None:
            matches = self.matcher(outputs.logits, outputs.boxes, targets)
        return targets, matches

    def exchange(self, targets: BatchTargets, *, failed: bool = False) -> tuple[Tensor, bool]:
        """Tell the other processes about this one, in one collective operation.

        Args:
            targets: of this process.
            failed: this process has no losses.

        Returns:
            the mean number of target boxes per process of the global batch, at least 1, a float32 scalar; and
            whether any process has failed.
        """
        own = (sum(targets.normalizing_counts), failed)
        values = torch.stack([torch.full((), float(value), device=targets.boxes.device) for value in own])
        world_size = comm.get_world_size()
        if world_size > 1:
            torch.distributed.all_reduce(values)
            failed = bool(values[1])
        return (values[0] / world_size).clamp(min=1), failed

    @torch.no_grad()
    def metrics(self, outputs: Outputs, targets: BatchTargets, last: Matches) -> dict[str, Tensor]:
        """Metrics of the last layer.

        Args:
            outputs, targets: as for :meth:`forward`.
            last: pairs of the last layer.
        """
        logits = outputs.logits[-1].float()
        counts = torch.tensor(targets.counts).to(logits.device, non_blocking=True)
        values = {
            "class_error": losses.class_error(
                logits[last.image, last.query], targets.labels[last.image, last.target]
            )
        }
        for term in self._terms():
            num_predicted = term.num_predicted(logits)
            if num_predicted is not None:
                values["cardinality_error"] = losses.cardinality_error(num_predicted, counts)
        return values
