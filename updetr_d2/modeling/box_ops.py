"""Box arithmetic that broadcasts over leading dimensions, which torchvision's and Detectron2's IoU does not."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``[..., 4]`` centre-size boxes -> corner boxes, any scale."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``[..., 4]`` corner boxes -> centre-size boxes, any scale."""
    top_left, bottom_right = boxes.split(2, dim=-1)
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def generalized_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of corner boxes, element by element.

    Args:
        boxes1, boxes2: ``[..., 4]`` XYXY boxes whose leading dimensions broadcast.
        eps: lower bound of the denominators, so that boxes without area give a finite value and gradient.

    Returns:
        ``[...]`` in [-1, 1].
    """
    area1 = _area(boxes1)
    area2 = _area(boxes2)
    intersection = _intersection(boxes1, boxes2)
    enclosing = _area(
        torch.cat(
            (
                torch.minimum(boxes1[..., :2], boxes2[..., :2]),
                torch.maximum(boxes1[..., 2:], boxes2[..., 2:]),
            ),
            dim=-1,
        )
    )
    union = area1 + area2 - intersection
    iou = intersection / union.clamp(min=eps)
    return iou - (enclosing - union) / enclosing.clamp(min=eps)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of all pairs of corner boxes.

    Args:
        boxes1: ``[..., N, 4]`` XYXY.
        boxes2: ``[..., T, 4]`` XYXY; leading dimensions broadcast.

    Returns:
        ``[..., N, T]`` in [0, 1], 0 for boxes without area.
    """
    boxes1, boxes2 = boxes1[..., :, None, :], boxes2[..., None, :, :]
    intersection = _intersection(boxes1, boxes2)
    return intersection / (_area(boxes1) + _area(boxes2) - intersection).clamp(min=1e-7)


def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    return _area(torch.cat((top_left, bottom_right), dim=-1))


def _area(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(dim=-1)
    return width * height
