"""From mask logits to instance masks and a panoptic segmentation (DETR, Section 4.4).

``N`` queries, ``K`` classes; things are the classes below ``num_thing_classes``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
) -> tuple[Tensor, list[dict]]:
    """Give every pixel to the confident query with the highest mask logit there.

    Queries of the same stuff class make one segment. Where segments turn out too small their queries are
    dropped, and their pixels given to the others, until all are large enough.

    Args:
        class_logits: ``[N, K+1]``, the last class is "no object".
        mask_logits: ``[N, h, w]`` of the resized image, without padding.
        size: (height, width) of the output; the map is resized by nearest neighbour.
        num_thing_classes: classes below are things.
        score_threshold: queries with a lower or equal score are dropped.
        min_area: segments of at most this many pixels of the output are dropped.

    Returns:
        int32 map ``size`` of segment ids, 0 where there is no segment, and Detectron2's ``segments_info``
        with ``id`` (1, 2, …), ``isthing``, ``category_id`` (class in [0, K)), ``score`` and ``area``. The
        score of a stuff segment of several queries is the highest one.
    """
    scores, classes = class_logits.float().softmax(dim=-1).max(dim=-1)
    kept = ((classes != class_logits.shape[-1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    # Each thing is its own segment, numbered by its query; stuff classes are numbered after the queries.
    num_queries = len(scores)
    segment_of_query = torch.where(
        classes < num_thing_classes, torch.arange(num_queries, device=classes.device), num_queries + classes
    )
    while len(kept):
        winner = kept[mask_logits[kept].argmax(dim=0)]
        segments = _resize_labels(segment_of_query[winner], size)
        area = segments.flatten().bincount(minlength=num_queries + class_logits.shape[-1])
        large = area[segment_of_query[kept]] > min_area
        if large.all():
            return _number_segments(
                segments, segment_of_query, area, scores, classes, kept, num_thing_classes
            )
        kept = kept[large]
    return torch.zeros(size, dtype=torch.int32, device=mask_logits.device), []


def _resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """``[h, w]`` -> ``[*size]``, the label at the centre of each output pixel (Pillow's nearest neighbour)."""
    # In integers: as fractions, centres on the border of two pixels would be rounded at random.
    rows, columns = (
        (2 * torch.arange(new, device=labels.device) + 1) * old // (2 * new)
        for old, new in zip(labels.shape, size)
    )
    return labels[rows[:, None], columns]


def _number_segments(
    segments: Tensor,
    segment_of_query: Tensor,
    area: Tensor,
    scores: Tensor,
    classes: Tensor,
    kept: Tensor,
    num_thing_classes: int,
) -> tuple[Tensor, list[dict]]:
    """Number the segments 1, 2, … in the order of their first queries."""
    infos: dict[int, dict] = {}
    rows = zip(*(x[kept].tolist() for x in (segment_of_query, scores, classes)))
    for segment, score, category in rows:
        if segment in infos:
            infos[segment]["score"] = max(score, infos[segment]["score"])
            continue
        infos[segment] = {
            "id": len(infos) + 1,
            "isthing": category < num_thing_classes,
            "category_id": category,
            "score": score,
        }
    ids = torch.zeros(len(area), dtype=torch.int32)
    for (segment, info), pixels in zip(infos.items(), area[list(infos)].tolist()):
        ids[segment] = info["id"]
        info["area"] = pixels
    return ids.to(segments.device)[segments], list(infos.values())
