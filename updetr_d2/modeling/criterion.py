"""Set prediction loss of DETR (arXiv 2005.12872, Section 3.1) with UP-DETR's feature reconstruction."""

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from updetr_d2.modeling import losses
from updetr_d2.modeling.matcher import Matches, build_matcher
from updetr_d2.modeling.targets import BatchTargets

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Criteria: modules (heads, BatchTargets) -> (dict of weighted losses, dict of metrics).
"""


def build_criterion(cfg) -> nn.Module:
    """Build the criterion named by ``cfg.MODEL.CRITERION.NAME``."""
    return CRITERION_REGISTRY.get(cfg.MODEL.CRITERION.NAME)(cfg)


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Match predictions with targets, layer by layer, and compute the losses of all layers together.

    Args:
        num_classes: foreground classes K.
        matcher: callable (logits, boxes, targets) -> :class:`Matches`.
        weights: weight of each loss by name, such as ``{"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}``.
        eos_coef: weight of "no object" in the classification loss, in (0, 1].
        deep_supervision: losses on every decoder layer instead of the last only.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher,
        weights: dict[str, float],
        eos_coef: float = 0.1,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = weights
        self.deep_supervision = deep_supervision
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = eos_coef
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def from_config(cls, cfg):
        criterion = cfg.MODEL.CRITERION
        return {
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "matcher": build_matcher(cfg),
            "weights": {
                "loss_ce": criterion.CLASS_WEIGHT,
                "loss_bbox": criterion.BBOX_WEIGHT,
                "loss_giou": criterion.GIOU_WEIGHT,
                "loss_feature": criterion.FEATURE_WEIGHT,
                "loss_mask": criterion.MASK_WEIGHT,
                "loss_dice": criterion.DICE_WEIGHT,
            },
            "eos_coef": criterion.EOS_COEF,
            "deep_supervision": cfg.MODEL.DETR.DEEP_SUPERVISION,
        }

    def forward(
        self, heads: dict[str, Tensor], targets: BatchTargets
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Args:
            heads: ``pred_logits`` [L,B,N,K+1], ``pred_boxes`` [L,B,N,4] and optionally ``pred_features``
                [L,B,N,D]; any float type, the losses are computed in float32.
            targets: padded targets of the B images; with ``features`` if ``pred_features`` is given.

        Returns:
            weighted scalar losses (suffix ``_0`` … ``_{L-2}`` for the layers before the last), and scalar
            metrics of the last layer that are logged but not trained: ``class_error`` (%),
            ``cardinality_error``.
        """
        with torch.autocast(heads["pred_logits"].device.type, enabled=False):
            return self._forward(heads, targets)

    def _forward(self, heads, targets):
        first_layer = 0 if self.deep_supervision else len(heads["pred_logits"]) - 1
        predictions = {name: heads[name][first_layer:] for name in ("pred_logits", "pred_boxes")}
        if "pred_features" in heads:
            predictions["pred_features"] = heads["pred_features"][first_layer:]
        matches = self.matcher(predictions["pred_logits"], predictions["pred_boxes"], targets)
        num_boxes = self.num_boxes(targets)
        layer_losses = {
            **self.class_losses(predictions, targets, matches),
            **self.pair_losses(predictions, targets, matches, num_boxes),
        }
        weighted = {}
        for name, values in layer_losses.items():
            *auxiliary, last = (self.weights[name] * values).unbind()
            weighted[name] = last
            weighted.update({f"{name}_{i}": value for i, value in enumerate(auxiliary)})
        return weighted, self.metrics(predictions, targets, matches)

    def num_boxes(self, targets: BatchTargets) -> Tensor:
        """Mean number of target boxes per process of the global batch, at least 1; a float32 scalar."""
        total = torch.full((), float(sum(targets.counts)), device=targets.boxes.device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(total)
            total = total / comm.get_world_size()
        return total.clamp(min=1)

    def class_losses(
        self, predictions: dict[str, Tensor], targets: BatchTargets, matches: Matches
    ) -> dict[str, Tensor]:
        logits = predictions["pred_logits"].float()
        classes = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        classes[matches.layer, matches.image, matches.query] = targets.labels[matches.image, matches.target]
        return {"loss_ce": losses.classification_loss(logits, classes, self.class_weights)}

    def pair_losses(
        self, predictions: dict[str, Tensor], targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of matched pairs only: sums over the pairs of a layer divided by ``num_boxes``."""
        queries = (matches.layer, matches.image, matches.query)
        boxes = predictions["pred_boxes"][queries].float()
        target_boxes = targets.boxes[matches.image, matches.target]
        pair_losses = {
            "loss_bbox": losses.box_l1_loss(boxes, target_boxes),
            "loss_giou": losses.giou_loss(boxes, target_boxes),
        }
        if "pred_features" in predictions:
            pair_losses["loss_feature"] = losses.feature_reconstruction_loss(
                predictions["pred_features"][queries].float(),
                targets.features[matches.image, matches.target].float(),
            )
        num_layers = len(predictions["pred_boxes"])
        return {
            name: losses.sum_per_layer(values, matches.layer, num_layers) / num_boxes
            for name, values in pair_losses.items()
        }

    @torch.no_grad()
    def metrics(
        self, predictions: dict[str, Tensor], targets: BatchTargets, matches: Matches
    ) -> dict[str, Tensor]:
        logits = predictions["pred_logits"]
        last = matches.last_layer_only(len(logits))
        counts = torch.tensor(targets.counts).to(logits.device, non_blocking=True)
        return {
            "class_error": losses.class_error(
                logits[-1][last.image, last.query], targets.labels[last.image, last.target]
            ),
            "cardinality_error": losses.cardinality_error(logits[-1], counts),
        }
