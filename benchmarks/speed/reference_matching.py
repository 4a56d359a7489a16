"""Matching and losses written the straightforward way: layer by layer, image by image, as DETR's code does.

The cost matrix of a layer has a row for every query and a column for every target of the *whole batch*, of which
only the blocks of the same image are used.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from updetr_d2.modeling.matcher import FORBIDDEN, HungarianMatcher
from updetr_d2.modeling.targets import BatchTargets

Pairs = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def match_layer(
    matcher: HungarianMatcher,
    logits: Tensor,
    boxes: Tensor,
    labels: list[Tensor],
    target_boxes: list[Tensor],
    group_size: int | None = None,
) -> Pairs:
    """Match one decoder layer.

    Args:
        matcher: gives the weights of the cost.
        logits: ``[B, N, K+1]``.
        boxes: ``[B, N, 4]`` cxcywh.
        labels, target_boxes: ``[T_b]`` and ``[T_b, 4]`` of each image.
        group_size: see :class:`BatchTargets`.

    Returns:
        indices of queries and targets of each image, on the CPU.
    """
    batch_size, num_queries = logits.shape[:2]
    probabilities = logits.flatten(0, 1).softmax(dim=-1)
    flat_boxes = boxes.flatten(0, 1)
    all_labels, all_boxes = torch.cat(labels), torch.cat(target_boxes)
    cost_class = -probabilities[:, all_labels]
    cost_bbox = torch.cdist(flat_boxes, all_boxes, p=1)
    cost_giou = -generalized_box_iou(
        box_convert(flat_boxes, "cxcywh", "xyxy"), box_convert(all_boxes, "cxcywh", "xyxy")
    )
    cost = matcher.cost_bbox * cost_bbox + matcher.cost_class * cost_class + matcher.cost_giou * cost_giou
    blocks = cost.view(batch_size, num_queries, -1).cpu().split([len(x) for x in labels], dim=-1)
    own = [block[image] for image, block in enumerate(blocks)]
    if group_size is not None:
        groups = torch.arange(num_queries)[:, None] // group_size
        own = [each.masked_fill(groups != torch.arange(each.shape[1]), FORBIDDEN) for each in own]
    pairs = [linear_sum_assignment(each) for each in own]
    return [(torch.as_tensor(query), torch.as_tensor(target)) for query, target in pairs]


def targets_of_images(targets: BatchTargets) -> tuple[list[Tensor], list[Tensor]]:
    """Labels and boxes of each image, without padding."""
    labels = [row[:count] for row, count in zip(targets.labels, targets.counts)]
    boxes = [row[:count] for row, count in zip(targets.boxes, targets.counts)]
    return labels, boxes


def match(matcher: HungarianMatcher, logits: Tensor, boxes: Tensor, targets: BatchTargets) -> list[Pairs]:
    """Match all decoder layers, one after the other."""
    labels, target_boxes = targets_of_images(targets)
    return [
        match_layer(matcher, layer_logits, layer_boxes, labels, target_boxes)
        for layer_logits, layer_boxes in zip(logits, boxes)
    ]
