"""From raw head outputs to Detectron2's ``Instances``: no score threshold, and NMS only where asked for."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy


def absolute_boxes(boxes: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Relative cxcywh boxes ``[B, N, 4]`` -> XYXY in the pixels of images of ``sizes`` (height, width)."""
    scale = torch.tensor([[w, h, w, h] for h, w in sizes], dtype=torch.float32)
    return cxcywh_to_xyxy(boxes.float()) * scale.to(boxes.device, non_blocking=True)[:, None]


def class_probabilities(logits: Tensor, class_loss: str) -> Tensor:
    """float32 probabilities of logits: softmax, with "no object" last, or one sigmoid a class ("focal")."""
    return logits.float().sigmoid() if class_loss == "focal" else logits.float().softmax(dim=-1)


def detector_postprocess(
    logits: Tensor,
    boxes: Tensor,
    sizes: list[tuple[int, int]],
    *,
    class_loss: str = "softmax",
    max_detections: int = 100,
    nms_threshold: float = 1.0,
) -> list[Instances]:
    """Best foreground class of every query ("softmax"), or the best pairs of query and class ("focal").

    Args:
        logits: ``[B, N, K+1]``, the last class is "no object"; ``[B, N, K]`` with "focal".
        boxes: ``[B, N, 4]`` cxcywh in [0, 1].
        sizes: (height, width) of each output.
        class_loss: "softmax" or "focal".
        max_detections: of an image, with "focal".
        nms_threshold: of boxes of one class with a larger IoU the best stays; 1 keeps all.

    Returns:
        B ``Instances`` of N (or ``max_detections``) predictions: ``pred_boxes``, ``scores``, ``pred_classes`` and
        ``query``, int64, which query each comes from.
    """
    probabilities = class_probabilities(logits, class_loss)
    if class_loss == "focal":
        num_classes = probabilities.shape[-1]
        pairs = probabilities.flatten(1)
        scores, pair = pairs.topk(min(max_detections, pairs.shape[1]), dim=1)
        queries, classes = pair.div(num_classes, rounding_mode="floor"), pair % num_classes
    else:
        scores, classes = probabilities[..., :-1].max(dim=-1)
        queries = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
    boxes = absolute_boxes(boxes, sizes)
    results = [
        Instances(size, pred_boxes=Boxes(b[q]), scores=s, pred_classes=c, query=q)
        for size, b, s, c, q in zip(sizes, boxes, scores, classes, queries)
    ]
    if nms_threshold < 1:
        results = [
            each[batched_nms(each.pred_boxes.tensor, each.scores, each.pred_classes, nms_threshold)]
            for each in results
        ]
    return results


def query_patch_postprocess(
    logits: Tensor,
    boxes: Tensor,
    num_patches: int,
    sizes: list[tuple[int, int]],
    counts: list[int],
    *,
    class_loss: str = "softmax",
) -> list[Instances]:
    """Predictions of each query patch's group, the best query of every group first.

    Args:
        logits: ``[B, M·G, K+1]`` of M groups of G queries, the last class is "no object"; ``[B, M·G, K]`` with
            "focal".
        boxes: ``[B, M·G, 4]`` cxcywh in [0, 1].
        num_patches: M.
        sizes: (height, width) of each output.
        counts: number of patches of each image, at most M; the groups after them are left out.
        class_loss: "softmax" or "focal".

    Returns:
        B ``Instances`` with ``pred_boxes``, ``scores``, ``pred_patches`` (int64 index of the patch). The
        first ``counts[b]`` predictions are the best of patches 0, 1, …; the others follow by score.
    """
    probabilities = class_probabilities(logits, class_loss)
    scores = probabilities.amax(dim=-1) if class_loss == "focal" else 1 - probabilities[..., -1]
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
