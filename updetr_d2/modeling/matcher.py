"""Bipartite matching of predictions and targets (DETR, Section 3.1), for all decoder layers at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy, generalized_iou
from updetr_d2.modeling.losses import focal_class_cost
from updetr_d2.modeling.targets import BatchTargets

# More than every sum of costs in an image: pairs that must not be.
FORBIDDEN = 1e6

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers: callables (logits [L,B,N,K+1], boxes [L,B,N,4], BatchTargets) -> Matches.
"""


def build_matcher(cfg: CfgNode) -> "Callable[[Tensor, Tensor, BatchTargets], Matches]":
    """Build the matcher named by ``cfg.MODEL.MATCHER.NAME``."""
    return MATCHER_REGISTRY.get(cfg.MODEL.MATCHER.NAME)(cfg)


@dataclass
class Matches:
    """Matched (prediction, target) pairs of all layers and images, flattened; P pairs.

    Attributes:
        layer, image, query, target: int64 ``[P]`` indices; sorted by layer, then image, then query.
        last_start: where the last layer begins; None if every layer has as many pairs.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    last_start: int | None = None

    def last_layer_only(self, num_layers: int) -> "Matches":
        """The pairs of the last of ``num_layers`` layers."""
        start = self.last_start
        if start is None:
            start = len(self.layer) // num_layers * (num_layers - 1)
        return Matches(self.layer[start:], self.image[start:], self.query[start:], self.target[start:])


@MATCHER_REGISTRY.register()
class HungarianMatcher:
    """Optimal one-to-one assignment of targets to predictions.

    The cost of a pair is ``cost_bbox`` · L1(cx, cy, w, h) + ``cost_class`` · c(class) − ``cost_giou`` · GIoU;
    c(class) is −p(class) of a softmax, or the difference that a match makes to the focal loss.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the three terms.
        class_loss: "softmax" or "focal", which the class cost belongs to.
        focal_alpha, focal_gamma: of the focal loss.

    Raises:
        ValueError: if all weights are zero.
    """

    @configurable
    def __init__(
        self,
        *,
        cost_class: float = 1.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        class_loss: str = "softmax",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("`cost_class`, `cost_bbox` and `cost_giou` must not all be 0.")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_loss = class_loss
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "cost_class": cfg.MODEL.MATCHER.COST_CLASS,
            "cost_bbox": cfg.MODEL.MATCHER.COST_BBOX,
            "cost_giou": cfg.MODEL.MATCHER.COST_GIOU,
            "class_loss": cfg.MODEL.CRITERION.CLASS_LOSS,
            "focal_alpha": cfg.MODEL.CRITERION.FOCAL_ALPHA,
            "focal_gamma": cfg.MODEL.CRITERION.FOCAL_GAMMA,
        }

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: BatchTargets) -> Tensor:
        """Matching cost of every query and target of the same image.

        Args:
            logits: ``[L, B, N, K+1]`` or, for the focal loss, ``[L, B, N, K]``, any float type.
            boxes: ``[L, B, N, 4]`` cxcywh in [0, 1], any float type.
            targets: padded targets of the B images, T at most.

        Returns:
            float32 ``[L, B, N, T]``; columns of padding are meaningless, pairs of different groups have
            the cost :data:`FORBIDDEN` where ``targets.group_size`` is given.
        """
        num_layers, _, num_queries = logits.shape[:3]
        if self.class_loss == "focal":
            class_cost = focal_class_cost(
                logits, targets.labels, alpha=self.focal_alpha, gamma=self.focal_gamma
            )
        else:
            labels = targets.labels[None, :, None].expand(num_layers, -1, num_queries, -1)
            class_cost = -logits.float().softmax(dim=-1).gather(3, labels)
        boxes = boxes.float()[:, :, :, None]
        target_boxes = targets.boxes[None, :, None]
        l1 = (boxes - target_boxes).abs().sum(dim=-1)
        giou = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        cost = self.cost_bbox * l1 + self.cost_class * class_cost - self.cost_giou * giou
        if targets.group_size is not None:
            group = torch.arange(num_queries, device=cost.device) // targets.group_size
            target = torch.arange(targets.labels.shape[1], device=cost.device)
            cost = cost.masked_fill(group[:, None] != target, FORBIDDEN)
        return cost

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: BatchTargets) -> Matches:
        """Match every layer and image by itself.

        Args: as for :meth:`cost`.

        Returns:
            the pairs, min(N, targets of the image) of them for each layer and image, on the logits' device.

        Raises:
            FloatingPointError: if a cost is not finite, naming the quantity that is to blame.
        """
        with torch.autocast(logits.device.type, enabled=False):
            cost = self.cost(logits, boxes, targets).cpu()
        if not torch.isfinite(cost).all():
            raise FloatingPointError(_blame(logits, boxes, targets))
        pairs = []
        for layer, layer_cost in enumerate(cost.numpy()):
            for image, count in enumerate(targets.counts):
                query, target = linear_sum_assignment(layer_cost[image, :, :count])
                pairs.append((np.full_like(query, layer), np.full_like(query, image), query, target))
        indices = torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device, non_blocking=True)
        layers, images, queries, matched = indices.unbind()
        return Matches(layers, images, queries, matched)


def _blame(logits: Tensor, boxes: Tensor, targets: BatchTargets) -> str:
    quantities = {
        "predicted class logits": logits,
        "predicted boxes": boxes,
        "target boxes": targets.boxes,
    }
    blamed = [name for name, value in quantities.items() if not torch.isfinite(value).all()]
    return f"The matching cost is not finite because of: {', '.join(blamed) or 'an overflow in the cost'}."
