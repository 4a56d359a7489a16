"""Two stages: the encoder's tokens propose boxes, the best of which become the decoder's queries.

``B`` images, ``S`` tokens of all levels, ``N`` queries, ``C`` channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy
from updetr_d2.modeling.outputs import AuxiliaryOutputs
from updetr_d2.modeling.transformers.base import Queries
from updetr_d2.modeling.transformers.tokens import Tokens

# A token whose box has a coordinate nearer to 0 or 1 makes no proposal.
_ANCHOR_MARGIN = 0.01
LARGEST_PROPOSAL = 1 - _ANCHOR_MARGIN


@dataclass
class DecoderInput:
    """Queries as the decoder gets them.

    Attributes:
        content: ``[B, N, C]``.
        position: ``[B, N, C]``, or None where each layer computes it from the boxes.
        reference: points ``[B, N, 2]`` or boxes ``[B, N, 4]`` in [0, 1], without gradient in two stages.
        proposals: of the encoder, to be trained; None in one stage.
    """

    content: Tensor
    position: Tensor | None
    reference: Tensor
    proposals: AuxiliaryOutputs | None = None


def token_proposals(tokens: Tokens, *, size: float) -> tuple[Tensor, Tensor]:
    """The box of each token: centered on it, of a size that its level sets (Deformable DETR, Appendix A.4).

    Args:
        tokens: of S positions.
        size: side of the boxes of the finest level, as a share of the image's; doubled from level to level.

    Returns:
        logits ``[B, S, 4]`` of (cx, cy, w, h), +inf where the token makes no proposal (padding, or too near to the
        edge), and bool ``[B, S]``, True where it does.
    """
    centers = tokens.centers().expand(len(tokens.values), -1, -1)
    sizes = torch.cat(
        [
            torch.full((h * w, 2), size * 2.0**level, device=centers.device)
            for level, (h, w) in enumerate(tokens.shapes)
        ]
    )
    boxes = torch.cat([centers, sizes.expand(len(centers), -1, -1)], dim=-1)
    usable = ((boxes > _ANCHOR_MARGIN) & (boxes < LARGEST_PROPOSAL)).all(dim=-1)
    if tokens.padding is not None:
        usable = usable & ~tokens.padding
    return (boxes / (1 - boxes)).log().masked_fill(~usable[..., None], float("inf")), usable


def best_tokens(scores: Tensor, queries: Queries) -> Tensor:
    """Indices ``[B, N]`` of the tokens with the highest scores ``[B, S]``; groups of queries get the same ones.

    With fewer tokens than queries there are as many queries as tokens; of a group, the best come again.
    """
    size = queries.num_queries // queries.num_groups
    best = scores.topk(min(size, scores.shape[1]), dim=1).indices
    if queries.num_groups == 1:
        return best
    within = torch.arange(size, device=best.device) % best.shape[1]
    return best[:, within].repeat(1, queries.num_groups)


@torch.no_grad()
def without_duplicates(scores: Tensor, boxes: Tensor, *, threshold: float) -> Tensor:
    """Scores that put the proposals which non-maximum suppression drops behind all others.

    Args:
        scores: logits ``[B, S]``.
        boxes: ``[B, S, 4]`` cxcywh in [0, 1].
        threshold: a proposal with a larger IoU with a better one is dropped.

    Returns:
        probabilities ``[B, S]`` of those that stay, less 1 of the others.
    """
    scores = scores.float().sigmoid()
    image = torch.arange(len(scores), device=scores.device).repeat_interleave(scores.shape[1])
    kept = batched_nms(cxcywh_to_xyxy(boxes.float()).flatten(0, 1), scores.flatten(), image, threshold)
    dropped = torch.ones_like(scores.flatten()).index_fill(0, kept, 0.0)
    return scores - dropped.view_as(scores)


def with_patches(content: Tensor, queries: Queries) -> Tensor:
    """Contents ``[B, N, C]`` of the queries with the patches that they look for."""
    if queries.patches is None:
        return content
    return content + queries.patches[:, : content.shape[1]]


def gather_tokens(values: Tensor, indices: Tensor) -> Tensor:
    """``[B, S, D]``, ``[B, N]`` -> ``[B, N, D]``."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
