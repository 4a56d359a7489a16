"""Losses of predicted masks (DETR, Section 4.4), exact or in sampled points (PointRend, arXiv 1912.08193).

``P`` matched pairs, ``V`` values (pixels or points) of each mask.
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PointSampling:
    """How points are drawn: mostly where a mask is uncertain, the others at random.

    Attributes:
        num_points: points per mask.
        oversample_ratio: candidates per point, at least 1.
        importance_sample_ratio: share of the points that are the most uncertain candidates, in [0, 1].

    Raises:
        ValueError: if a value is out of its range.
    """

    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.oversample_ratio < 1 or not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(
                f"`num_points` ({self.num_points}) must be positive, `oversample_ratio` "
                f"({self.oversample_ratio}) at least 1 and `importance_sample_ratio` "
                f"({self.importance_sample_ratio}) in [0, 1]."
            )


def point_sampling(cfg: CfgNode) -> PointSampling | None:
    """The sampling that ``MODEL.MASK_HEAD`` asks for; None for the exact losses."""
    head = cfg.MODEL.MASK_HEAD
    if head.TRAIN_NUM_POINTS == 0:
        return None
    return PointSampling(head.TRAIN_NUM_POINTS, head.OVERSAMPLE_RATIO, head.IMPORTANCE_SAMPLE_RATIO)


def corresponding_values(
    logits: Tensor, masks: Tensor, sampling: PointSampling | None
) -> tuple[Tensor, Tensor]:
    """Predicted and true values of the same pixels, or of the same sampled points.

    Both cover the padded images; logits are upsampled bilinearly to the resolution of the true masks.

    Args:
        logits: float32 ``[P, h, w]``.
        masks: bool ``[P, H, W]`` of the padded images, False on padding.
        sampling: None compares every pixel.

    Returns:
        logits and targets (0 or 1; between where a point lies on an edge), float32 ``[P, V]``.
    """
    logits, masks = logits[:, None], masks[:, None].float()
    if sampling is None:
        upsampled = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        return upsampled.flatten(1), masks.flatten(1)
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            logits,
            lambda values: -values.abs(),
            sampling.num_points,
            sampling.oversample_ratio,
            sampling.importance_sample_ratio,
        )
        true = _values_at(masks, points)
    return _values_at(logits, points), true


def _values_at(maps: Tensor, points: Tensor) -> Tensor:
    """Maps ``[P, 1, h, w]`` at points ``[P, V, 2]`` in [0, 1] -> ``[P, V]``; constant beyond the edge pixels."""
    return point_sample(maps, points, align_corners=False, padding_mode="border")[:, 0]


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017) of masks ``[P, V]``, mean over the values -> ``[P]``."""
    return sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma).mean(dim=1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2·Σpt + 1) / (Σp + Σt + 1) of masks ``[P, V]`` (Milletari et al., 3DV 2016) -> ``[P]``, in [0, 1]."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(dim=1)
    return 1 - (overlap + 1) / (probabilities.sum(dim=1) + targets.sum(dim=1) + 1)
