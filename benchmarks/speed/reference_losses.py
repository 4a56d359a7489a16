"""The losses of one decoder layer, written the straightforward way."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from benchmarks.speed.reference_matching import Pairs


def layer_losses(
    outputs: dict[str, Tensor],
    pairs: Pairs,
    labels: list[Tensor],
    boxes: list[Tensor],
    patch_features: Tensor | None,
    class_weights: Tensor,
) -> dict[str, Tensor]:
    """Losses of one decoder layer, without their weights.

    Args:
        outputs: ``pred_logits`` [B, N, K+1], ``pred_boxes`` [B, N, 4] and optionally ``pred_features`` [B, N, D].
        pairs: matched queries and targets of each image.
        labels, boxes: ``[T_b]`` and cxcywh ``[T_b, 4]`` of each image.
        patch_features: ``[B, T, D]`` to reconstruct, or None.
        class_weights: ``[K+1]``.
    """
    logits = outputs["pred_logits"]
    num_boxes = max(sum(len(x) for x in labels), 1)
    image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
    query = torch.cat([query for query, _ in pairs])
    classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, device=logits.device)
    classes[image, query] = torch.cat([x[target] for x, (_, target) in zip(labels, pairs)])
    matched = outputs["pred_boxes"][image, query]
    true = torch.cat([x[target] for x, (_, target) in zip(boxes, pairs)])
    giou = generalized_box_iou(
        box_convert(matched, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy")
    ).diag()
    losses = {
        "loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, class_weights),
        "loss_bbox": F.l1_loss(matched, true, reduction="none").sum() / num_boxes,
        "loss_giou": (1 - giou).sum() / num_boxes,
    }
    if "pred_features" in outputs:
        assert patch_features is not None
        features = F.normalize(outputs["pred_features"][image, query], dim=1)
        wanted = torch.cat([x[target] for x, (_, target) in zip(patch_features, pairs)])
        losses["loss_feature"] = (features - F.normalize(wanted, dim=1)).square().sum() / num_boxes
    return losses
