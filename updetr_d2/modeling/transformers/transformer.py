"""The encoder-decoder transformer of DETR (arXiv 2005.12872, Appendix A.3) in post-norm and pre-norm form.

Parameter names are those of the official code, so its checkpoints load as they are. All is batch-first:
``B`` batch, ``S`` image tokens (H*W), ``N`` object queries, ``L`` decoder layers, ``C`` hidden channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from updetr_d2.modeling.attention import MultiheadAttention
from updetr_d2.modeling.fast.dropout import Dropout
from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.position_encoding import SinePositionEncoding
from updetr_d2.modeling.transformers.base import (
    TRANSFORMER_REGISTRY,
    Decoded,
    DetectionTransformer,
    Pyramid,
    Queries,
    in_float32,
)


class TransformerLayer(nn.Module):
    """What encoder and decoder layers share: self-attention, a feed-forward network, residual blocks.

    Args:
        hidden_dim: channels C.
        num_heads: attention heads; divides C.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: probability, in [0, 1).
        pre_norm: normalise before (True) or after (False) each block.
    """

    def __init__(
        self, *, hidden_dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiheadAttention(hidden_dim, num_heads, dropout=dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.dropout = Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))

    def residual(
        self, x: Tensor, block: Callable[[Tensor], Tensor], norm: nn.LayerNorm, dropout: Dropout
    ) -> Tensor:
        if self.pre_norm:
            return x + dropout(block(norm(x)))
        return norm(x + dropout(block(x)))


class TransformerEncoderLayer(TransformerLayer):
    """Self-attention over the image tokens, then the feed-forward network."""

    def forward(self, x: Tensor, *, position: Tensor, allowed: Tensor | None) -> Tensor:
        """
        Args:
            x: tokens ``[B, S, C]``.
            position: position encoding ``[B, S, C]``, added to queries and keys only.
            allowed: bool ``[B, 1, 1, S]``, False on padding, or None without padding.

        Returns:
            ``[B, S, C]``
        """

        def attend(tokens: Tensor) -> Tensor:
            query = tokens + position
            return self.self_attn(query, query, tokens, allowed=allowed)

        x = self.residual(x, attend, self.norm1, self.dropout1)
        return self.residual(x, self.feed_forward, self.norm2, self.dropout2)


class TransformerDecoderLayer(TransformerLayer):
    """Self-attention over the object queries, attention over the image tokens, feed-forward network."""

    def __init__(self, *, hidden_dim: int, num_heads: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout, **kwargs)
        self.multihead_attn = MultiheadAttention(hidden_dim, num_heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout3 = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor,
        memory_key: Tensor,
        query_position: Tensor,
        allowed_queries: Tensor | None,
        allowed: Tensor | None,
    ) -> Tensor:
        """
        Args:
            x: content of the queries ``[B, N, C]``.
            memory: encoder output ``[B, S, C]``, the values of the cross-attention.
            memory_key: encoder output plus position encoding ``[B, S, C]``, its keys.
            query_position: position of the queries ``[B, N, C]``.
            allowed_queries: bool ``[N, N]``, False where self-attention is forbidden, or None.
            allowed: bool ``[B, 1, 1, S]``, False on padding, or None without padding.

        Returns:
            ``[B, N, C]``
        """

        def attend_queries(content: Tensor) -> Tensor:
            query = content + query_position
            return self.self_attn(query, query, content, allowed=allowed_queries)

        def attend_image(content: Tensor) -> Tensor:
            query = content + query_position
            return self.multihead_attn(query, memory_key, memory, allowed=allowed)

        x = self.residual(x, attend_queries, self.norm1, self.dropout1)
        x = self.residual(x, attend_image, self.norm2, self.dropout2)
        return self.residual(x, self.feed_forward, self.norm3, self.dropout3)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, with a final layer norm in the pre-norm form only."""

    def __init__(
        self, layers: list[TransformerEncoderLayer], norm: nn.LayerNorm | None, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.recompute = recompute

    def forward(self, x: Tensor, *, position: Tensor, allowed: Tensor | None) -> Tensor:
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, position=position, allowed=allowed, use_reentrant=False)
            else:
                x = layer(x, position=position, allowed=allowed)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers; one shared layer norm on the output of every layer."""

    def __init__(
        self, layers: list[TransformerDecoderLayer], norm: nn.LayerNorm, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.recompute = recompute

    def forward(self, x: Tensor, **context: Tensor | None) -> Tensor:
        outputs = []
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(functools.partial(layer, **context), x, use_reentrant=False)
            else:
                x = layer(x, **context)
            outputs.append(x)
        return self.norm(torch.stack(outputs))


@TRANSFORMER_REGISTRY.register()
class Transformer(DetectionTransformer):
    """DETR's transformer. The content input of the decoder is zero: queries enter as positions only.

    Args:
        hidden_dim: channels C.
        num_heads: attention heads; divides C.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability, in [0, 1).
        pre_norm: pre-norm layers (UP-DETR) instead of post-norm ones (DETR).
        recompute_encoder: keep only the input of each encoder layer for the backward pass, which then computes the
            layer again: less memory, more time, the same gradients.
        recompute_decoder: the same for the decoder.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_dim``.
    """

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        recompute_encoder: bool = False,
        recompute_decoder: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"`hidden_dim` ({hidden_dim}) must be a multiple of `num_heads` ({num_heads}).")
        self.hidden_dim = hidden_dim
        self.position_encoding = SinePositionEncoding(hidden_dim)
        layer_args: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.encoder = TransformerEncoder(
            [TransformerEncoderLayer(**layer_args) for _ in range(num_encoder_layers)],
            nn.LayerNorm(hidden_dim) if pre_norm else None,
            recompute=recompute_encoder,
        )
        self.decoder = TransformerDecoder(
            [TransformerDecoderLayer(**layer_args) for _ in range(num_decoder_layers)],
            nn.LayerNorm(hidden_dim),
            recompute=recompute_decoder,
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        detr = cfg.MODEL.DETR
        return {
            "hidden_dim": detr.HIDDEN_DIM,
            "num_heads": detr.NHEADS,
            "num_encoder_layers": detr.ENC_LAYERS,
            "num_decoder_layers": detr.DEC_LAYERS,
            "dim_feedforward": detr.DIM_FEEDFORWARD,
            "dropout": detr.DROPOUT,
            "pre_norm": detr.PRE_NORM,
            "recompute_encoder": detr.RECOMPUTE_ENCODER,
            "recompute_decoder": detr.RECOMPUTE_DECODER,
        }

    def build_input_proj(self, channels: Sequence[int]) -> nn.Conv2d:
        return nn.Conv2d(channels[0], self.hidden_dim, kernel_size=1)

    def build_query_embed(self, num_queries: int) -> nn.Embedding:
        return nn.Embedding(num_queries, self.hidden_dim)

    def build_heads(self, num_logits: int) -> tuple[nn.Module, nn.Module]:
        return nn.Linear(self.hidden_dim, num_logits), MLP(self.hidden_dim, self.hidden_dim, 4, num_layers=3)

    def project(self, input_proj: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
        return [input_proj(features[0])]

    def decode(
        self, pyramid: Pyramid, queries: Queries, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        (features,), (padding,) = pyramid.levels, pyramid.paddings
        positions_of = padding
        if positions_of is None:  # the same for all images
            positions_of = torch.zeros(1, *features.shape[-2:], dtype=torch.bool, device=features.device)
        states, memory = self(
            features,
            position=self.position_encoding(positions_of),
            query_position=queries.position(len(features)),
            padding_mask=padding,
            query_mask=queries.attn_mask,
        )
        boxes = in_float32(bbox_embed, states).sigmoid()
        return Decoded(states, in_float32(class_embed, states), boxes, memory)

    def forward(
        self,
        features: Tensor,
        *,
        position: Tensor,
        query_position: Tensor,
        padding_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: projected backbone features ``[B, C, H, W]``.
            position: position encoding ``[B, C, H, W]``, or ``[1, C, H, W]`` for all images.
            query_position: object queries ``[B, N, C]``.
            padding_mask: bool ``[B, H, W]``, True on padding, or None if there is none.
            query_mask: bool ``[N, N]``, True where one query must not attend to another, or None.

        Returns:
            decoder states ``[L, B, N, C]`` of all layers and encoder memory ``[B, C, H, W]``.
        """
        tokens = features.flatten(2).transpose(1, 2)
        # The sum that residual blocks add to keeps its digits under autocast.
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        token_position = position.flatten(2).transpose(1, 2)
        allowed = None if padding_mask is None else ~padding_mask.flatten(1)[:, None, None]
        memory = self.encoder(tokens, position=token_position, allowed=allowed)
        states = self.decoder(
            torch.zeros_like(query_position),
            memory=memory,
            memory_key=memory + token_position,
            query_position=query_position,
            allowed_queries=None if query_mask is None else ~query_mask,
            allowed=allowed,
        )
        return states, memory.transpose(1, 2).unflatten(2, features.shape[-2:])
