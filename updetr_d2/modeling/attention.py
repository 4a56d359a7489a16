"""Multi-head attention on PyTorch's fused kernels, with the parameters of ``nn.MultiheadAttention``.

``B`` batch, ``Q`` queries, ``S`` keys, ``C`` channels, ``A`` heads.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.fast.dropout import dropout

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.MultiheadAttention):
    """Batch-first attention that returns no weights.

    PyTorch's own projects queries and keys that are the same tensor twice, and its kernels drop attention weights
    slowly on a CPU.

    Args:
        embed_dim: channels C.
        num_heads: A; divides C.
        dropout: probability that an attention weight is dropped in training, in [0, 1).
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__(embed_dim, num_heads, dropout=dropout, batch_first=True)

    # Other masks and another result than PyTorch's: the base class is for its parameters alone.
    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, *, allowed: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            query: ``[B, Q, C]``; may be the same tensor as ``key``.
            key, value: ``[B, S, C]``.
            allowed: bool that broadcasts to ``[B, A, Q, S]``, False where a query must not attend to a key, or
                None.

        Returns:
            ``[B, Q, C]``
        """
        query, key, value = (self._split_heads(x) for x in self._project(query, key, value))
        p = self.dropout if self.training else 0.0
        if p > 0 and query.device.type == "cpu":
            attended = _attend_with_fast_dropout(query, key, value, allowed, p)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=p)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """The attention weights ``[B, A, Q, S]`` of :meth:`forward` without dropout, to look at."""
        query, key, _ = (self._split_heads(x) for x in self._project(query, key, key))
        return _attention_weights(query, key, allowed)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values by the stacked projection, in the fewest matrix products."""
        if query is key:
            sizes = (2 * self.embed_dim, self.embed_dim)
            (weight_qk, weight_v), (bias_qk, bias_v) = (
                x.split(sizes) for x in (self.in_proj_weight, self.in_proj_bias)
            )
            query, key = F.linear(query, weight_qk, bias_qk).chunk(2, dim=-1)
            return query, key, F.linear(value, weight_v, bias_v)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))

    def _split_heads(self, x: Tensor) -> Tensor:
        """``[B, Q, C]`` -> ``[B, A, Q, C/A]``."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _attend_with_fast_dropout(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, p: float
) -> Tensor:
    """``F.scaled_dot_product_attention`` with the dropout of this package, ``[B, A, Q, C/A]``."""
    return dropout(_attention_weights(query, key, allowed), p) @ value


def _attention_weights(query: Tensor, key: Tensor, allowed: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1)
