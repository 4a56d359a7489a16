"""One-to-many assignment: several queries, or tokens of the encoder, learn the same object.

A one-to-one match gives a training step as many positive predictions as it has objects, few with few labels;
several for each object, with non-maximum suppression at the end, give a dense signal.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy, pairwise_iou
from updetr_d2.modeling.matcher import MATCHER_REGISTRY, Matches
from updetr_d2.modeling.targets import BatchTargets

__all__ = ["IoUMatcher", "match_centers"]


@MATCHER_REGISTRY.register()
class IoUMatcher:
    """Assignment by overlap (DETA, Ouyang-Zhang et al., arXiv 2212.06137), here of the predicted boxes.

    A query belongs to the target that its box overlaps most, if their IoU is at least ``iou_threshold`` and few
    others overlap the target more; the query that overlaps a target most belongs to it in any case.

    Args:
        iou_threshold: in (0, 1).
        max_per_target: queries that a target gets at most, at least 1.

    Raises:
        ValueError: if an argument is out of its range.
    """

    @configurable
    def __init__(self, *, iou_threshold: float = 0.6, max_per_target: int = 4) -> None:
        if not 0 < iou_threshold < 1:
            raise ValueError(f"`iou_threshold` is {iou_threshold}: it must be between 0 and 1.")
        if max_per_target < 1:
            raise ValueError(f"`max_per_target` is {max_per_target}: it must be at least 1.")
        self.iou_threshold = iou_threshold
        self.max_per_target = max_per_target

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        matcher = cfg.MODEL.MATCHER
        return {"iou_threshold": matcher.IOU_THRESH, "max_per_target": matcher.MAX_PER_TARGET}

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: BatchTargets) -> Matches:
        """Assign every layer and image by itself.

        Args:
            logits: ``[L, B, N, *]``; not looked at.
            boxes: ``[L, B, N, 4]`` cxcywh in [0, 1], any float type.
            targets: padded targets of the B images, T at most.

        Raises:
            FloatingPointError: if a box is not finite.
        """
        with torch.autocast(boxes.device.type, enabled=False):
            iou = pairwise_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets.boxes))  # [L, B, N, T]
        num_queries, num_targets = iou.shape[-2:]
        index = torch.arange(num_targets, device=iou.device)
        counts = torch.tensor(targets.counts).to(iou.device, non_blocking=True)
        iou = iou.masked_fill((index >= counts[:, None])[:, None], -1.0)
        if targets.group_size is not None:
            group = torch.arange(num_queries, device=iou.device) // targets.group_size
            iou = iou.masked_fill(group[:, None] != index, -1.0)
        if not torch.isfinite(boxes).all():
            raise FloatingPointError("The overlaps are not finite because of: predicted boxes.")
        if num_targets == 0:
            return _as_matches(torch.full(iou.shape[:-1], -1, device=iou.device))
        best, target = iou.max(dim=-1)
        ranked = iou.topk(min(self.max_per_target, num_queries), dim=-2)
        enough = torch.zeros_like(iou, dtype=torch.bool).scatter(-2, ranked.indices, True)
        belongs = enough.gather(-1, target[..., None])[..., 0] & (best >= self.iou_threshold)
        target = target.masked_fill(~belongs, -1)
        # Every target gets its best query, even where another one overlaps that query more.
        first = ranked.indices[..., 0, :].masked_fill(ranked.values[..., 0, :] < 0, num_queries)
        padded = F.pad(target, (0, 1))
        padded.scatter_(-1, first, index.expand_as(first))
        return _as_matches(padded[..., :-1])


@torch.no_grad()
def match_centers(centers: Tensor, targets: BatchTargets, *, radius: float) -> Matches:
    """Assign tokens to the targets whose middle they are in; of several, the smallest target gets a token.

    Args:
        centers: (x, y) of the tokens, ``[B, S, 2]`` in [0, 1].
        targets: padded targets of the B images.
        radius: half side of the middle, as a share of the target's half side, in (0, 1].

    Returns:
        the pairs of one layer; a target without a token in its middle gets the nearest one.
    """
    boxes = targets.boxes
    num_targets = boxes.shape[1]
    num_tokens = centers.shape[1]
    if num_targets == 0:
        return _as_matches(torch.full((1, len(boxes), num_tokens), -1, device=boxes.device))
    distance = (centers[:, :, None] - boxes[:, None, :, :2]).abs() / (boxes[:, None, :, 2:] / 2).clamp(
        min=1e-6
    )
    distance = distance.amax(dim=-1)  # [B, S, T], 1 on the border
    index = torch.arange(num_targets, device=boxes.device)
    counts = torch.tensor(targets.counts).to(boxes.device, non_blocking=True)
    present = (index < counts[:, None])[:, None]
    area = (boxes[..., 2] * boxes[..., 3])[:, None].expand_as(distance)
    smallest, target = area.masked_fill(~present | (distance > radius), float("inf")).min(dim=-1)
    target = target.masked_fill(smallest.isinf(), -1)
    nearest = (
        distance.masked_fill(~present, float("inf")).argmin(dim=1).masked_fill(~present[:, 0], num_tokens)
    )
    padded = F.pad(target, (0, 1))
    padded.scatter_(-1, nearest, index.expand_as(nearest))
    return _as_matches(padded[None, :, :-1])


def _as_matches(target: Tensor) -> Matches:
    """The pairs of an assignment ``[L, B, N]`` of queries to targets, -1 for none."""
    layer, image, query = (target >= 0).nonzero().unbind(dim=1)
    last_start = int((layer < len(target) - 1).sum())
    return Matches(layer, image, query, target[layer, image, query], last_start)
