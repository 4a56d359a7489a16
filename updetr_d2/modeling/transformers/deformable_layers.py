"""Layers of deformable transformers.

``B`` images, ``S`` tokens of all levels, ``V`` levels, ``N`` queries, ``C`` channels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.attention import MultiheadAttention
from updetr_d2.modeling.fast.dropout import Dropout
from updetr_d2.modeling.transformers.deformable_attention import MultiScaleDeformableAttention
from updetr_d2.modeling.transformers.tokens import Tokens


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
