"""Layers of deformable transformers, and the tokens of several levels that they work on.

``B`` images, ``S`` tokens of all levels, ``V`` levels, ``N`` queries, ``C`` channels.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.attention import MultiheadAttention
from updetr_d2.modeling.fast.dropout import Dropout
from updetr_d2.modeling.transformers.deformable_attention import MultiScaleDeformableAttention


@dataclass
class Tokens:
    """Tokens of all levels, row by row and level after level.

    Attributes:
        values: ``[B, S, C]``.
        position: ``[B, S, C]`` or ``[1, S, C]``, added to queries.
        shapes: (height, width) of each level.
        padding: bool ``[B, S]``, True on padding, or None without padding.
        valid: valid part (width, height) of each padded level in (0, 1], float32 ``[B, V, 2]`` or ``[1, V, 2]``.
    """

    values: Tensor
    position: Tensor
    shapes: list[tuple[int, int]]
    padding: Tensor | None
    valid: Tensor

    def with_values(self, values: Tensor) -> "Tokens":
        return dataclasses.replace(self, values=values)

    def level_map(self, level: int) -> Tensor:
        """``[B, C, h, w]``."""
        sizes = [h * w for h, w in self.shapes]
        return self.values.split(sizes, dim=1)[level].transpose(1, 2).unflatten(2, self.shapes[level])

    def centers(self) -> Tensor:
        """Centers (x, y) of the tokens as fractions of the valid image, float32 ``[B, S, 2]`` (or 1 for B)."""
        levels = []
        for level, (height, width) in enumerate(self.shapes):
            y = (torch.arange(height, dtype=torch.float32, device=self.valid.device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=self.valid.device) + 0.5) / width
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
            levels.append(grid / self.valid[:, level, None])
        return torch.cat(levels, dim=1)

    def reference_points(self) -> Tensor:
        """:meth:`centers` as fractions of every padded level, ``[B, S, V, 2]`` (or 1 for B)."""
        return self.in_levels(self.centers())

    def in_levels(self, reference: Tensor) -> Tensor:
        """Points or boxes ``[B, N, 2 or 4]`` in the valid image -> those of each padded level ``[B, N, V, *]``."""
        valid = self.valid if reference.shape[-1] == 2 else self.valid.repeat(1, 1, 2)
        return reference[:, :, None] * valid[:, None]


def flatten_levels(
    levels: Sequence[Tensor],
    paddings: Sequence[Tensor | None],
    encode: Callable[[Tensor], Tensor],
    level_embed: Tensor,
) -> Tokens:
    """Put the tokens of all levels into one row.

    Args:
        levels: ``[B, C, h, w]``.
        paddings: bool ``[B, h, w]``, True on padding, or None without padding.
        encode: position encoding of a padding mask.
        level_embed: ``[V, C]``, added to the positions.
    """
    positions, valid = [], []
    for level, padding, embed in zip(levels, paddings, level_embed):
        if padding is None:
            padding = torch.zeros(1, *level.shape[-2:], dtype=torch.bool, device=level.device)
        positions.append(encode(padding).flatten(2).transpose(1, 2) + embed)
        present = ~padding
        valid.append(
            torch.stack([present[:, 0].float().mean(dim=1), present[:, :, 0].float().mean(dim=1)], -1)
        )
    padded = [padding for padding in paddings if padding is not None]
    return Tokens(
        values=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
        position=torch.cat(positions, dim=1),
        shapes=[(level.shape[-2], level.shape[-1]) for level in levels],
        padding=torch.cat([padding.flatten(1) for padding in padded], dim=1) if padded else None,
        valid=torch.stack(valid, dim=1),
    )


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logits of values in [0, 1], with distances from 0 and 1 of at least ``eps``."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class LayerStack(nn.Module):
    """A list of layers under the name ``layers``."""

    # Where DINO's checkpoints have them; other transformers have none.
    norm: nn.Module
    ref_point_head: nn.Module

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _FeedForward(nn.Module):
    """What both kinds of layers end with."""

    def __init__(self, *, hidden_dim: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)

    def feed_forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        update = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return norm(x + self.dropout(update))


class DeformableEncoderLayer(_FeedForward):
    """Deformable self-attention over the tokens, then the feed-forward network, post-norm.

    Args:
        hidden_dim, num_heads, num_levels, num_points: of the attention.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: probability, in [0, 1).
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__(hidden_dim=hidden_dim, dim_feedforward=dim_feedforward, dropout=dropout)
        self.self_attn = MultiScaleDeformableAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor, tokens: Tokens, reference: Tensor) -> Tensor:
        """
        Args:
            x: ``[B, S, C]``.
            tokens: their positions, shapes and padding.
            reference: ``[B, S, V, 2]``, or 1 for B.
        """
        reference = reference.expand(len(x), -1, -1, -1)
        attended = self.self_attn(x + tokens.position, reference, x, tokens.shapes, tokens.padding)
        return self.feed_forward(self.norm1(x + self.dropout(attended)), self.norm2)


class DeformableDecoderLayer(_FeedForward):
    """Self-attention over the queries, deformable attention over the tokens, feed-forward network, post-norm.

    The norms have the official names: the second one follows the self-attention.

    Args: as for :class:`DeformableEncoderLayer`.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__(hidden_dim=hidden_dim, dim_feedforward=dim_feedforward, dropout=dropout)
        self.self_attn = MultiheadAttention(hidden_dim, num_heads, dropout=dropout)
        self.cross_attn = MultiScaleDeformableAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(
        self, x: Tensor, *, position: Tensor, reference: Tensor, tokens: Tokens, allowed: Tensor | None
    ) -> Tensor:
        """
        Args:
            x: content of the queries ``[B, N, C]``.
            position: ``[B, N, C]``.
            reference: ``[B, N, V, 2 or 4]``.
            tokens: encoder output.
            allowed: bool ``[N, N]``, False where self-attention is forbidden, or None.
        """
        query = x + position
        x = self.norm2(x + self.dropout(self.self_attn(query, query, x, allowed=allowed)))
        attended = self.cross_attn(x + position, reference, tokens.values, tokens.shapes, tokens.padding)
        return self.feed_forward(self.norm1(x + self.dropout(attended)), self.norm3)
