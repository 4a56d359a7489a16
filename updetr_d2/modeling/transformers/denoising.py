"""Contrastive denoising (DINO, arXiv 2203.03605, Section 3.3): noised ground truth as further queries in training.

A model learns to restore slightly noised boxes, and to call more strongly noised ones "no object". ``B`` images,
at most ``T`` objects in one, ``R`` denoising queries, ``N`` matching queries (those of the detector itself).
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy, xyxy_to_cxcywh
from updetr_d2.modeling.matcher import Matches
from updetr_d2.modeling.outputs import AuxiliaryOutputs, Outputs
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers.base import NoisedQueries

__all__ = ["Denoising", "DenoisingQueries", "denoising_mask", "make_denoising_queries"]


@dataclass
class Denoised:
    """Noised objects of a batch, and which of them are to be restored to what.

    Attributes:
        queries: what the decoder gets.
        noise: where they come from.
        counts: objects of each image.
    """

    queries: NoisedQueries
    noise: "DenoisingQueries"
    counts: list[int]

    def outputs(self, logits: Tensor, boxes: Tensor) -> AuxiliaryOutputs:
        """What is trained: ``logits`` ``[L, B, R, K]`` and ``boxes`` ``[L, B, R, 4]`` of the decoder."""
        matches = restored_objects(
            self.counts,
            num_layers=len(logits),
            num_groups=self.noise.num_groups,
            group_size=self.noise.group_size,
            device=logits.device,
        )
        return AuxiliaryOutputs(Outputs(logits, boxes), matches, num_copies=self.noise.num_groups)


class Denoising:
    """The part that gives a detector noised objects in training.

    Args:
        num_queries, label_noise, box_noise, num_classes: see :func:`make_denoising_queries`.
    """

    def __init__(self, *, num_queries: int, label_noise: float, box_noise: float, num_classes: int) -> None:
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Denoising | None":
        """None where ``MODEL.DENOISING.NUM_QUERIES`` is 0.

        Raises:
            ValueError: if the transformer cannot take noised boxes.
        """
        denoising = cfg.MODEL.DENOISING
        if denoising.NUM_QUERIES == 0:
            return None
        if cfg.MODEL.TRANSFORMER.NAME == "Transformer" or not cfg.MODEL.DEFORMABLE.TWO_STAGE:
            raise ValueError(
                "MODEL.DENOISING.NUM_QUERIES needs queries that are boxes: use a deformable transformer "
                "(MODEL.TRANSFORMER.NAME) with MODEL.DEFORMABLE.TWO_STAGE True, or set it to 0."
            )
        return cls(
            num_queries=denoising.NUM_QUERIES,
            label_noise=denoising.LABEL_NOISE,
            box_noise=denoising.BOX_NOISE,
            num_classes=cfg.MODEL.DETR.NUM_CLASSES,
        )

    def __call__(self, targets: BatchTargets, embed_labels: nn.Embedding) -> Denoised | None:
        """
        Args:
            targets: ground truth.
            embed_labels: embedding of at least K classes in C channels.

        Returns:
            None for a batch without objects.
        """
        noise = make_denoising_queries(
            targets,
            num_queries=self.num_queries,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
            num_classes=self.num_classes,
        )
        if noise is None:
            return None
        content = embed_labels(noise.labels) * noise.valid[..., None]
        return Denoised(NoisedQueries(content, noise.boxes, noise.group_size), noise, targets.counts)


@dataclass
class DenoisingQueries:
    """Noised objects in groups; a group holds each object twice, first T positives, then T negatives.

    Attributes:
        labels: int64 ``[B, R]``, noised classes in [0, K).
        boxes: ``[B, R, 4]``, noised (cx, cy, w, h) in [0, 1].
        valid: bool ``[B, R]``, False where an image has no object for the query.
        target: int64 ``[B, R]``, index in [0, T) of the object that was noised.
        positive: bool ``[B, R]``, True where the object is to be restored, False where it is "no object".
        num_groups: groups; R is ``num_groups`` · ``group_size``.
        group_size: 2 · T.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    target: Tensor
    positive: Tensor
    num_groups: int
    group_size: int


def make_denoising_queries(
    targets: BatchTargets, *, num_queries: int, label_noise: float, box_noise: float, num_classes: int
) -> DenoisingQueries | None:
    """Noise the objects of a batch, in as many groups as fit ``num_queries``, but at least one.

    Every side of a box moves inwards or outwards by a share of half the box's size: of positives by less than
    ``box_noise``, of negatives by ``box_noise`` to 2 · ``box_noise``. Boxes are clipped to the image; one whose
    sides have changed places has size 0.

    Args:
        targets: ground truth.
        num_queries: denoising queries of an image in all, positives and negatives.
        label_noise: twice the probability that a label is replaced by a random class, in [0, 1].
        box_noise: largest move of a positive's sides, in half sizes; at least 0.
        num_classes: K.

    Returns:
        None if ``num_queries`` is 0 or no image has an object.
    """
    most = max(targets.counts, default=0)
    if num_queries == 0 or most == 0:
        return None
    num_groups = max(1, num_queries // (2 * most))
    device = targets.labels.device
    shape = (len(targets.counts), num_groups, 2, most)
    negative = torch.arange(2, device=device)[:, None]
    index = torch.arange(most, device=device)
    counts = torch.tensor(targets.counts).to(device, non_blocking=True)
    return DenoisingQueries(
        labels=_noise_labels(
            targets.labels[:, None, None].expand(shape), probability=label_noise / 2, num_classes=num_classes
        ).flatten(1),
        boxes=_noise_boxes(
            targets.boxes[:, None, None].expand(*shape, 4), negative=negative[..., None], scale=box_noise
        ).flatten(1, 3),
        valid=(index < counts[:, None, None, None]).expand(shape).flatten(1),
        target=index.expand(shape).flatten(1),
        positive=(negative == 0).expand(shape).flatten(1),
        num_groups=num_groups,
        group_size=2 * most,
    )


def denoising_mask(
    num_denoising: int,
    group_size: int,
    num_matching: int,
    device: torch.device,
    *,
    matching_mask: Tensor | None = None,
) -> Tensor:
    """Which queries must not attend to which, the denoising ones first.

    A denoising query sees its group and the matching queries. A matching query sees no denoising one, which would
    tell it the answer.

    Args:
        num_denoising: R.
        group_size: queries of a group; divides R.
        num_matching: N.
        device: where the result is.
        matching_mask: bool ``[N, N]``, True where a matching query must not attend to another; None if all may.

    Returns:
        bool ``[R + N, R + N]``, True where the query of the row must not attend to that of the column.

    Raises:
        ValueError: if the groups do not divide R evenly.
    """
    if num_denoising % group_size:
        raise ValueError(f"{num_denoising} denoising queries are not groups of {group_size}.")
    group = torch.arange(num_denoising, device=device) // group_size
    mask = torch.zeros((num_denoising + num_matching,) * 2, dtype=torch.bool, device=device)
    mask[:num_denoising, :num_denoising] = group[:, None] != group
    mask[num_denoising:, :num_denoising] = True
    if matching_mask is not None:
        mask[num_denoising:, num_denoising:] = matching_mask
    return mask


def restored_objects(
    counts: list[int], *, num_layers: int, num_groups: int, group_size: int, device: torch.device
) -> Matches:
    """Pairs of positive denoising queries and the objects that they were made of, the same in each layer.

    Args:
        counts: objects of each image.
        num_layers, num_groups, group_size: see :class:`DenoisingQueries`.
        device: where the result is.
    """
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    target = torch.cat([torch.arange(count) for count in counts])
    image, target = (x.repeat(num_groups) for x in (image, target))
    group = torch.arange(num_groups).repeat_interleave(sum(counts))
    query = group * group_size + target
    layer = torch.arange(num_layers).repeat_interleave(len(image))
    pairs = torch.stack([layer, *(x.repeat(num_layers) for x in (image, query, target))])
    layer, image, query, target = pairs.to(device, non_blocking=True).unbind()
    return Matches(layer, image, query, target)


def _noise_labels(labels: Tensor, *, probability: float, num_classes: int) -> Tensor:
    """Replace labels by a class drawn from all, their own included."""
    replaced = torch.rand(labels.shape, device=labels.device) < probability
    return torch.where(replaced, torch.randint_like(labels, num_classes), labels)


def _noise_boxes(boxes: Tensor, *, negative: Tensor, scale: float) -> Tensor:
    """Move each side of cxcywh boxes by a random distance of its own.

    Args:
        boxes: ``[..., 4]``.
        negative: 0 or 1, how many times ``scale`` a side moves at least; broadcasts to ``boxes``.
        scale: range of a move in half sizes.
    """
    moves = (torch.rand_like(boxes) + negative) * scale
    sign = torch.randint_like(boxes, 2) * 2 - 1
    half_sizes = boxes[..., 2:].tile(2) / 2
    corners = cxcywh_to_xyxy(boxes) + sign * moves * half_sizes
    return xyxy_to_cxcywh(corners.clamp(0, 1)).clamp(min=0)
