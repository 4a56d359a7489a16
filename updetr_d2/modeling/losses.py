"""The loss terms of DETR and UP-DETR as plain functions of matched pairs, one value per decoder layer.

``L`` decoder layers, ``B`` images, ``N`` queries, ``K`` classes, ``P`` matched pairs of all layers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy, generalized_iou


def sum_per_layer(values: Tensor, layer: Tensor, num_layers: int) -> Tensor:
    """Sum the values ``[P]`` of the pairs of each layer -> ``[L]``."""
    return values.new_zeros(num_layers).index_add(0, layer, values)


def classification_loss(
    logits: Tensor, target_classes: Tensor, class_weights: Tensor, untaught: Tensor | None = None
) -> Tensor:
    """Cross-entropy over all queries, a weighted mean in each layer (DETR, Equation 2).

    Args:
        logits: float32 ``[L, B, N, K+1]``.
        target_classes: int64 ``[L, B, N]`` in [0, K]; K is "no object".
        class_weights: ``[K+1]``.
        untaught: bool ``[L, B, N]``, True for queries that do not count; None if all do.

    Returns:
        ``[L]``
    """
    num_layers = logits.shape[0]
    losses = F.cross_entropy(
        logits.flatten(0, 2), target_classes.flatten(), weight=class_weights, reduction="none"
    )
    weights = class_weights[target_classes].reshape(num_layers, -1)
    losses = losses.reshape(num_layers, -1)
    if untaught is None:
        return losses.sum(dim=1) / weights.sum(dim=1)
    taught = ~untaught.reshape(num_layers, -1)
    total = (weights * taught).sum(dim=1).clamp(min=torch.finfo(weights.dtype).tiny)
    return (losses * taught).sum(dim=1) / total


def sigmoid_focal_loss(
    logits: Tensor,
    target_classes: Tensor,
    num_boxes: Tensor | float,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    untaught: Tensor | None = None,
) -> Tensor:
    """Focal loss of K independent classes (Lin et al., ICCV 2017), summed in each layer, per matched box.

    Args:
        logits: ``[L, B, N, K]``.
        target_classes: int64 ``[L, B, N]`` in [0, K]; K is "no object", a negative of every class.
        num_boxes: what the sum is divided by, a number or a tensor ``[]``.
        alpha: weight of positives; that of negatives is 1 − alpha.
        gamma: the larger, the less easy examples count.
        untaught: bool ``[L, B, N]``, True for queries that do not count; None if all do.

    Returns:
        float32 ``[L]``
    """
    logits = logits.float()
    classes = torch.arange(logits.shape[-1], device=logits.device)
    targets = (target_classes[..., None] == classes).to(logits.dtype)
    losses = ops.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
    if untaught is not None:
        losses = losses.masked_fill(untaught[..., None], 0.0)
    return losses.flatten(1).sum(dim=1) / num_boxes


def focal_class_cost(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What the focal loss changes by if a query gets a class instead of "no object" (Deformable DETR).

    Args:
        logits: ``[L, B, N, K]``.
        labels: int64 ``[B, T]`` in [0, K).
        alpha, gamma: as for :func:`sigmoid_focal_loss`.

    Returns:
        float32 ``[L, B, N, T]``
    """
    num_layers, _, num_queries, _ = logits.shape
    labels = labels[None, :, None].expand(num_layers, -1, num_queries, -1)
    probability = logits.float().gather(3, labels).sigmoid()
    # The official code's bound on the logarithms: without it, certain classes would outweigh any box.
    positive = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return positive - negative


def box_l1_loss(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """L1 distance of matched cxcywh boxes ``[P, 4]`` -> ``[P]``."""
    return (boxes - target_boxes).abs().sum(dim=-1)


def giou_loss(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """1 − GIoU of matched cxcywh boxes ``[P, 4]`` -> ``[P]``, in [0, 2]."""
    return 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))


def feature_reconstruction_loss(features: Tensor, target_features: Tensor) -> Tensor:
    """Squared distance of l2-normalised features ``[P, D]`` -> ``[P]``, in [0, 4] (paper, Section 3.2)."""
    difference = F.normalize(features, dim=-1) - F.normalize(target_features, dim=-1)
    return difference.square().sum(dim=-1)


def class_error(logits: Tensor, target_classes: Tensor) -> Tensor:
    """Percentage of matched queries ``[P, K+1]`` whose best class is wrong; 100 if nothing is matched."""
    if not len(target_classes):
        return logits.new_tensor(100.0)
    return 100 * (logits.argmax(dim=-1) != target_classes).float().mean()


def cardinality_error(num_predicted: Tensor, counts: Tensor) -> Tensor:
    """Mean over images of |number of predicted objects − number of targets|, both ``[B]``."""
    return (num_predicted - counts).abs().float().mean()
