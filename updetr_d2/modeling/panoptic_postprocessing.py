"""From mask logits to instance masks and a panoptic segmentation (DETR, Section 4.4).

``N`` queries, ``K`` classes; things are the classes below ``num_thing_classes``.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from updetr_d2.modeling.postprocessing import class_probabilities


def upsample_masks(logits: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Masks ``[N, h, w]`` of a padded image -> ``[N, *image_size]`` of the image without padding.

    Args:
        logits: float ``[N, h, w]``.
        padded_size, image_size: (height, width) of the model's input with and without padding.
    """
    upsampled = F.interpolate(logits[:, None].float(), size=padded_size, mode="bilinear", align_corners=False)
    return upsampled[:, 0, : image_size[0], : image_size[1]]


def instance_masks(logits: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Every query's own mask, whatever the other queries say.

    Args:
        logits: ``[N, h, w]`` of the resized image, without padding.
        size: (height, width) of the output.
        threshold: probability above which a pixel belongs to the mask, in (0, 1).

    Returns:
        bool ``[N, *size]``, resized by nearest neighbour.
    """
    masks = (logits.sigmoid() > threshold).to(torch.uint8)
    return F.interpolate(masks[:, None], size=size, mode="nearest")[:, 0].bool()


def panoptic_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    num_thing_classes: int,
    score_threshold: float = 0.85,
    min_area: int = 4,
    class_loss: str = "softmax",
) -> tuple[Tensor, list[dict]]:
    """Give every pixel to the confident query with the highest mask logit there.

    Queries of the same stuff class make one segment, that of the first of them. Queries without a segment of
    their own, and those whose segments are too small, are dropped and all pixels given out anew, until every
    query that is left has a segment that is large enough. This is the official code's procedure.

    Args:
        class_logits: ``[N, K+1]``, the last class is "no object"; ``[N, K]`` with "focal".
        mask_logits: ``[N, h, w]`` of the resized image, without padding.
        size: (height, width) of the output; the map is resized by nearest neighbour.
        num_thing_classes: classes below are things.
        score_threshold: queries with a lower or equal score are dropped.
        min_area: segments of at most this many pixels of the output are dropped.
        class_loss: "softmax" or "focal".

    Returns:
        int32 map ``size`` of segment ids, 0 where there is no segment, and Detectron2's ``segments_info``
        with ``id`` (1, 2, …), ``isthing``, ``category_id`` (class in [0, K)), ``score`` and ``area``.
    """
    scores, classes = class_probabilities(class_logits, class_loss).max(dim=-1)
    confident = scores > score_threshold
    if class_loss == "softmax":
        confident &= classes != class_logits.shape[-1] - 1
    kept = confident.nonzero()[:, 0]
    queries = torch.arange(len(scores), device=kept.device)
    first_of_class = torch.full((class_logits.shape[-1],), len(scores), device=kept.device)
    first_of_class = first_of_class.scatter_reduce(0, classes[kept], kept, "amin")
    segment_of_query = torch.where(classes < num_thing_classes, queries, first_of_class[classes])
    pixels = _label_grid(mask_logits.shape[1:], size, kept.device)
    while len(kept):
        winner = kept[mask_logits[kept].argmax(dim=0)]
        segments = segment_of_query[winner][pixels]
        area = segments.flatten().bincount(minlength=len(scores))[kept]
        large = area > min_area
        if large.all():
            ids = torch.zeros_like(queries, dtype=torch.int32)
            ids[kept] = torch.arange(1, len(kept) + 1, dtype=torch.int32, device=ids.device)
            found = zip(*(x.tolist() for x in (classes[kept], scores[kept], area)))
            return ids[segments], [
                {
                    "id": i,
                    "isthing": category < num_thing_classes,
                    "category_id": category,
                    "score": score,
                    "area": pixels,
                }
                for i, (category, score, pixels) in enumerate(found, start=1)
            ]
        kept = kept[large]
    return torch.zeros(size, dtype=torch.int32, device=mask_logits.device), []


def _label_grid(
    labels_size: tuple[int, ...], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Index of ``[h, w]`` that gives ``[*size]``: the label at the center of each output pixel, as Pillow's."""
    rows, columns = (_nearest(old, new).to(device, non_blocking=True) for old, new in zip(labels_size, size))
    return rows[:, None], columns


def _nearest(old: int, new: int) -> Tensor:
    """Index in ``old`` pixels for each of ``new``; a centre on the border of two falls as Pillow's sum does."""
    steps = np.full(new, old / new)
    steps[0] /= 2
    return torch.from_numpy(np.cumsum(steps).astype(np.int64))
