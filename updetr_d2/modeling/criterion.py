"""Set prediction loss of DETR (arXiv 2005.12872, Section 3.1): boxes, masks and UP-DETR's reconstruction."""

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from updetr_d2.modeling import losses, mask_losses
from updetr_d2.modeling.mask_head import QueryMasks
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
        mask_points: compare masks in random points only, None in every pixel.
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
        mask_points: mask_losses.PointSampling | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = weights
        self.deep_supervision = deep_supervision
        self.mask_points = mask_points
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
            "mask_points": mask_losses.point_sampling(cfg),
        }

    def forward(
        self, heads: dict[str, Tensor | QueryMasks], targets: BatchTargets
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Args:
            heads: ``pred_logits`` [L,B,N,K+1], ``pred_boxes`` [L,B,N,4] and optionally ``pred_features``
                [L,B,N,D], or what gives the same when indexed, and ``query_masks``, a :class:`QueryMasks`; any
                float type, the losses are computed in float32.
            targets: padded targets of the B images; with ``features`` if ``pred_features`` is given, with
                ``masks`` if ``query_masks`` is given.

        Returns:
            weighted scalar losses (suffix ``_0`` … ``_{L-2}`` for the layers before the last), and scalar
            metrics of the last layer that are logged but not trained: ``class_error`` (%),
            ``cardinality_error``.
        """
        num_boxes = self.num_boxes(targets)
        with torch.autocast(heads["pred_logits"].device.type, enabled=False):
            weighted, metrics, last_matches = self._query_losses(heads, targets, num_boxes)
        if "query_masks" in heads:  # outside, as this runs the mask head
            values = self.mask_losses(heads["query_masks"], targets, last_matches, num_boxes)
            weighted.update({name: self.weights[name] * value for name, value in values.items()})
        return weighted, metrics

    def _query_losses(
        self, heads: dict[str, Tensor], targets: BatchTargets, num_boxes: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Matches]:
        """Everything but the masks: weighted losses, metrics and the matches of the last layer."""
        first_layer = 0 if self.deep_supervision else len(heads["pred_logits"]) - 1
        predictions = {name: heads[name][first_layer:] for name in ("pred_logits", "pred_boxes")}
        matches = self.matcher(predictions["pred_logits"], predictions["pred_boxes"], targets)
        if "pred_features" in heads:  # of matched queries only
            features = heads["pred_features"][matches.layer + first_layer, matches.image, matches.query]
            predictions["matched_features"] = features
        layer_losses = {
            **self.class_losses(predictions, targets, matches),
            **self.pair_losses(predictions, targets, matches, num_boxes),
        }
        weighted = {}
        for name, values in layer_losses.items():
            *auxiliary, last = (self.weights[name] * values).unbind()
            weighted[name] = last
            weighted.update({f"{name}_{i}": value for i, value in enumerate(auxiliary)})
        last = matches.last_layer_only(len(predictions["pred_logits"]))
        return weighted, self.metrics(predictions, targets, last), last

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
        if "matched_features" in predictions:
            pair_losses["loss_feature"] = losses.feature_reconstruction_loss(
                predictions["matched_features"].float(),
                targets.features[matches.image, matches.target].float(),
            )
        num_layers = len(predictions["pred_boxes"])
        return {
            name: losses.sum_per_layer(values, matches.layer, num_layers) / num_boxes
            for name, values in pair_losses.items()
        }

    def mask_losses(
        self, query_masks: QueryMasks, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the masks of matched queries, the only ones that are computed.

        Args:
            matches: pairs of the last decoder layer.
        """
        image, query, target = matches.image, matches.query, matches.target
        if not len(image):
            # One query with weight 0 gives every parameter of the mask head a gradient, which DDP waits for.
            first = torch.zeros(1, dtype=torch.int64, device=num_boxes.device)
            nothing = 0 * query_masks.of(first, first).float().sum()
            return {"loss_mask": nothing, "loss_dice": nothing}
        logits = query_masks.of(image, query)
        with torch.autocast(logits.device.type, enabled=False):
            predicted, true = mask_losses.corresponding_values(
                logits.float(), targets.masks[image, target], self.mask_points
            )
            return {
                "loss_mask": mask_losses.focal_loss(predicted, true).sum() / num_boxes,
                "loss_dice": mask_losses.dice_loss(predicted, true).sum() / num_boxes,
            }

    @torch.no_grad()
    def metrics(
        self, predictions: dict[str, Tensor], targets: BatchTargets, last: Matches
    ) -> dict[str, Tensor]:
        logits = predictions["pred_logits"]
        counts = torch.tensor(targets.counts).to(logits.device, non_blocking=True)
        return {
            "class_error": losses.class_error(
                logits[-1][last.image, last.query], targets.labels[last.image, last.target]
            ),
            "cardinality_error": losses.cardinality_error(logits[-1], counts),
        }
