"""From raw head outputs to Detectron2's ``Instances``: no NMS, no score threshold (DETR, Section 3)."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy


def absolute_boxes(boxes: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Relative cxcywh boxes ``[B, N, 4]`` -> XYXY in the pixels of images of ``sizes`` (height, width)."""
    scale = torch.tensor([[w, h, w, h] for h, w in sizes], dtype=torch.float32, device=boxes.device)
    return cxcywh_to_xyxy(boxes.float()) * scale[:, None]


def detector_postprocess(logits: Tensor, boxes: Tensor, sizes: list[tuple[int, int]]) -> list[Instances]:
    """Best foreground class of every query.

    Args:
        logits: ``[B, N, K+1]``, the last class is "no object".
        boxes: ``[B, N, 4]`` cxcywh in [0, 1].
        sizes: (height, width) of each output.

    Returns:
        B ``Instances`` of N predictions: ``pred_boxes``, ``scores``, ``pred_classes``.
    """
    scores, classes = logits.float().softmax(dim=-1)[..., :-1].max(dim=-1)
    return [
        Instances(size, pred_boxes=Boxes(b), scores=s, pred_classes=c)
        for size, b, s, c in zip(sizes, absolute_boxes(boxes, sizes), scores, classes)
    ]


def query_patch_postprocess(
    logits: Tensor, boxes: Tensor, num_patches: int, sizes: list[tuple[int, int]], counts: list[int]
) -> list[Instances]:
    """Predictions of each query patch's group, the best query of every group first.

    Args:
        logits: ``[B, M·G, K+1]`` of M groups of G queries; the last class is "no object".
        boxes: ``[B, M·G, 4]`` cxcywh in [0, 1].
        num_patches: M.
        sizes: (height, width) of each output.
        counts: number of patches of each image, at most M; the groups after them are left out.

    Returns:
        B ``Instances`` with ``pred_boxes``, ``scores``, ``pred_patches`` (int64 index of the patch). The
        first ``counts[b]`` predictions are the best of patches 0, 1, …; the others follow by score.
    """
    scores = 1 - logits.float().softmax(dim=-1)[..., -1]
    boxes = absolute_boxes(boxes, sizes)
    group_scores = scores.unflatten(1, (num_patches, -1))
    group_size = group_scores.shape[-1]
    best = group_scores.argmax(dim=-1) + group_size * torch.arange(num_patches, device=scores.device)
    others = scores.scatter(1, best, -1).argsort(dim=1, descending=True)[:, : scores.shape[1] - num_patches]
    order = torch.cat((best, others), dim=1)
    num_kept = torch.tensor(counts).to(order.device, non_blocking=True) * group_size
    # Queries of missing patches go to the end: how many are left is known on the host, which waits for nothing.
    missing_last = (order >= num_kept[:, None]).to(torch.uint8).argsort(dim=1, stable=True)
    order = order.gather(1, missing_last)
    results = []
    for image, (size, count) in enumerate(zip(sizes, counts)):
        kept = order[image, : count * group_size]
        results.append(
            Instances(
                size,
                pred_boxes=Boxes(boxes[image, kept]),
                scores=scores[image, kept],
                pred_patches=kept // group_size,
            )
        )
    return results
