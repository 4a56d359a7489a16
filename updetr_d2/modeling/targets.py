"""Ground truth of a batch in the one padded form that matcher and criterion share."""

from dataclasses import dataclass, field

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from updetr_d2.modeling.box_ops import xyxy_to_cxcywh


@dataclass
class BatchTargets:
    """Targets of B images, padded to the largest number T of targets in an image.

    Attributes:
        labels: int64 ``[B, T]``, classes in [0, K); 0 on padding.
        boxes: float32 ``[B, T, 4]``, (cx, cy, w, h) as fractions of the image; the whole image on padding.
        counts: number of targets of every image, on the host.
        masks: bool ``[B, T, H, W]`` of the padded images, False on padding, or None.
        features: ``[B, T, D]`` features to reconstruct, or None.
        group_size: G if target j may be matched by the queries j·G to (j + 1)·G − 1 only; None for any query.
        uncertain: float32 ``[B, U, 4]``, boxes (as ``boxes``) of which nobody knows whether they are objects:
            queries there are not taught "no object". Padding has size 0. None for none.
        drop_iou: queries whose boxes overlap every target by at most this are not taught "no object" either
            (DropLoss of CutLER, arXiv 2301.11320); 0 teaches them.
        extra: what a task of its own learns beside them ``[B, T, *]``, by name.
    """

    labels: Tensor
    boxes: Tensor
    counts: list[int]
    masks: Tensor | None = None
    features: Tensor | None = None
    group_size: int | None = None
    uncertain: Tensor | None = None
    drop_iou: float = 0.0
    extra: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_instances(cls, instances: list[Instances], device: torch.device) -> "BatchTargets":
        """Pad the ``gt_boxes`` and ``gt_classes`` of every image; one transfer each to ``device``."""
        counts = [len(x) for x in instances]
        size = max(counts, default=0)
        labels = torch.zeros(len(instances), size, dtype=torch.int64)
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(instances), size, 1)
        for i, (image_targets, count) in enumerate(zip(instances, counts)):
            height, width = image_targets.image_size
            scale = torch.tensor([width, height, width, height], dtype=torch.float32)
            labels[i, :count] = image_targets.gt_classes
            boxes[i, :count] = xyxy_to_cxcywh(image_targets.gt_boxes.tensor.float() / scale)
        return cls(
            labels=labels.to(device, non_blocking=True),
            boxes=boxes.to(device, non_blocking=True),
            counts=counts,
        )


def pad_boxes(boxes: list[Boxes], sizes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Boxes of B images, for ``BatchTargets.uncertain``.

    Args:
        boxes: XYXY in px, on the host.
        sizes: (height, width) of the images.
        device: where the result is.

    Returns:
        float32 ``[B, U, 4]``, (cx, cy, w, h) as fractions of the image, U the largest number; 0 on padding.
    """
    padded = torch.zeros(len(boxes), max(map(len, boxes), default=0), 4)
    for row, image_boxes, (height, width) in zip(padded, boxes, sizes):
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        row[: len(image_boxes)] = xyxy_to_cxcywh(image_boxes.tensor.float() / scale)
    return padded.to(device, non_blocking=True)


def pad_masks(masks: list[BitMasks], size: tuple[int, int], device: torch.device) -> Tensor:
    """Masks of B images, for ``BatchTargets.masks``.

    Args:
        masks: ``[T_b, H_b, W_b]`` each, on the host.
        size: (height, width) of the padded images, at least that of every image.
        device: where the result is.

    Returns:
        bool ``[B, T, *size]``, T the largest T_b.
    """
    padded = torch.zeros(len(masks), max(map(len, masks)), *size, dtype=torch.bool, device=device)
    for image_padded, image_masks in zip(padded, masks):
        count, height, width = image_masks.tensor.shape
        image_padded[:count, :height, :width] = image_masks.tensor.to(device, non_blocking=True)
    return padded
