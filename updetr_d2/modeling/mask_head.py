"""Masks of object queries: attention maps over the image, refined by an FPN-style convolutional head.

DETR (Carion et al., ECCV 2020, arXiv 2005.12872), Section 4.4. Parameter names are those of the official
code. ``B`` images, ``N`` queries, ``P`` chosen (image, query) pairs, ``C`` channels, ``A`` attention heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Groups of every GroupNorm, as in the official code.
NUM_GROUPS = 8


class AttentionMap(nn.Module):
    """Attention of every query over the image, one map per head: the softmax alone, without values.

    Args:
        hidden_dim: channels C of queries and image.
        num_heads: attention heads A; divides C.
        softmax_over_heads: normalise over all heads and positions together, as DETR's released weights were
            trained, instead of over the positions of each head, as in UP-DETR's code.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, softmax_over_heads: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.softmax_over_heads = softmax_over_heads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, padding_mask: Tensor | None) -> Tensor:
        """
        Args:
            queries: decoder states ``[B, N, C]``.
            memory: encoder output ``[B, C, h, w]``.
            padding_mask: bool ``[B, h, w]``, True on padding, which gets no attention, or None without
                padding.

        Returns:
            ``[B, N, A, h, w]``, at least 0; sums to 1 over (h, w), or over (A, h, w) with
            ``softmax_over_heads``.
        """
        query = self.q_linear(queries).unflatten(2, (self.num_heads, -1))
        key = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(2, (self.num_heads, -1))
        scores = torch.einsum("bnac,bsac->bnas", query * query.shape[-1] ** -0.5, key)
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask.flatten(1)[:, None, None], float("-inf"))
        if self.softmax_over_heads:
            attention = scores.flatten(2).softmax(dim=-1).view_as(scores)
        else:
            attention = scores.softmax(dim=-1)
        return attention.unflatten(3, memory.shape[-2:])


class MaskHead(nn.Module):
    """Five 3x3 convolutions that refine attention maps to masks, with three finer features added on the way.

    The widths are C + A, C + A, C/2, C/4, C/8, C/16 and 1 (264, 264, 128, 64, 32, 16 and 1 for C = 256).

    Args:
        hidden_dim: channels C of the projected feature; a multiple of 128.
        num_heads: attention heads A; a multiple of 8.
        fpn_channels: channels of the three finer features, the coarsest first.

    Raises:
        ValueError: if there are not three finer features or a width is not a multiple of the norm's groups.
    """

    lay1: nn.Conv2d
    lay2: nn.Conv2d
    lay3: nn.Conv2d
    lay4: nn.Conv2d
    lay5: nn.Conv2d
    gn1: nn.GroupNorm
    gn2: nn.GroupNorm
    gn3: nn.GroupNorm
    gn4: nn.GroupNorm
    gn5: nn.GroupNorm
    adapter1: nn.Conv2d
    adapter2: nn.Conv2d
    adapter3: nn.Conv2d

    def __init__(self, *, hidden_dim: int, num_heads: int, fpn_channels: Sequence[int]) -> None:
        super().__init__()
        if len(fpn_channels) != 3:
            raise ValueError(
                f"`fpn_channels` names {len(fpn_channels)} features; the mask head adds three, "
                "the coarsest first, such as ['res4', 'res3', 'res2']."
            )
        if hidden_dim % (16 * NUM_GROUPS) or num_heads % NUM_GROUPS:
            raise ValueError(
                f"The mask head needs `hidden_dim` ({hidden_dim}) to be a multiple of "
                f"{16 * NUM_GROUPS} and `num_heads` ({num_heads}) a multiple of {NUM_GROUPS}."
            )
        self.context_dim = hidden_dim
        joint_dim = hidden_dim + num_heads
        widths = [joint_dim, joint_dim, *(hidden_dim // 2**i for i in range(1, 5))]
        for i in range(1, 6):
            self.add_module(f"lay{i}", nn.Conv2d(widths[i - 1], widths[i], kernel_size=3, padding=1))
            self.add_module(f"gn{i}", nn.GroupNorm(NUM_GROUPS, widths[i]))
        self.out_lay = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        for i, (channels, width) in enumerate(zip(fpn_channels, widths[2:5]), start=1):
            self.add_module(f"adapter{i}", nn.Conv2d(channels, width, kernel_size=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, context: Tensor, attention: Tensor, image: Tensor, fpn_features: Sequence[Tensor]
    ) -> Tensor:
        """
        Args:
            context: projected backbone features ``[B, C, h, w]``.
            attention: maps of the chosen queries ``[P, A, h, w]``.
            image: int64 ``[P]``, the image of each query.
            fpn_features: three finer features ``[B, *, h', w']``, the coarsest first.

        Returns:
            mask logits ``[P, h', w']`` in the resolution of the finest feature.
        """
        x = self._first_convolution(context, attention, image)
        x = F.relu(self.gn1(x))
        x = F.relu(self.gn2(self.lay2(x)))
        refinements = (
            (self.adapter1, self.lay3, self.gn3),
            (self.adapter2, self.lay4, self.gn4),
            (self.adapter3, self.lay5, self.gn5),
        )
        for feature, (adapter, conv, norm) in zip(fpn_features, refinements):
            finer = adapter(feature)
            x = finer.index_select(0, image) + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
            x = F.relu(norm(conv(x)))
        return self.out_lay(x)[:, 0]

    def _first_convolution(self, context: Tensor, attention: Tensor, image: Tensor) -> Tensor:
        """``lay1`` on (context, attention), with the context's share computed once per image, not per query."""
        context_weight, attention_weight = self.lay1.weight.split(
            (self.context_dim, self.lay1.in_channels - self.context_dim), dim=1
        )
        shared = F.conv2d(context, context_weight, self.lay1.bias, padding=1)
        return shared.index_select(0, image) + F.conv2d(attention, attention_weight, padding=1)


@dataclass
class QueryMasks:
    """Masks of a batch that are computed when asked for, so that training pays for matched queries only.

    Attributes:
        head: the mask head.
        context: projected backbone features ``[B, C, h, w]``.
        attention: maps of all queries ``[B, N, A, h, w]``.
        fpn_features: three finer features ``[B, *, h', w']``, the coarsest first.
        padded_size: (height, width) of the padded images, to which masks are upsampled.
    """

    head: MaskHead
    context: Tensor
    attention: Tensor
    fpn_features: list[Tensor]
    padded_size: tuple[int, int]

    def __getitem__(self, index: tuple[Tensor, Tensor] | slice) -> Tensor:
        """Mask logits ``[P, h', w']`` of ``[image, query]``, int64 ``[P]`` each; of ``[:]`` ``[B, N, h', w']``."""
        if isinstance(index, tuple):
            image, query = index
            return self.head(self.context, self.attention[image, query], image, self.fpn_features)
        num_images, num_queries = self.attention.shape[:2]
        image = torch.arange(num_images, device=self.attention.device).repeat_interleave(num_queries)
        query = torch.arange(num_queries, device=self.attention.device).repeat(num_images)
        return self[image, query].unflatten(0, (num_images, num_queries))
