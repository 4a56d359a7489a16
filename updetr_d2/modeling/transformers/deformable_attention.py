"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) in plain PyTorch, without a compiled op.

``B`` batch, ``Q`` queries, ``S`` tokens of all levels, ``C`` channels, ``A`` heads, ``D`` = C / A channels of a
head, ``L`` levels, ``P`` points of a level.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["MultiScaleDeformableAttention", "multi_scale_deformable_attention"]

# Zeros around a level, so that no corner of a position needs a mask: all four corners of a position that is out of
# reach lie in them.
_MARGIN = 2


def multi_scale_deformable_attention(
    value: Tensor,
    shapes: list[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    use_grid_sample: bool = False,
) -> Tensor:
    """Weighted sums of values at positions between the tokens of several levels.

    Values are sampled bilinearly, zero outside of a level; (0, 0) is the upper left corner of the upper left token
    (``align_corners=False`` of :func:`torch.nn.functional.grid_sample`). Only the arguments are kept for the
    backward pass. It can be differentiated once.

    Args:
        value: floating point ``[B, S, A, D]``, row by row and level after level.
        shapes: (height, width) of every level; S is the sum of their products.
        locations: ``[B, Q, A, L, P, 2]``, (x, y) as fractions of the level's width and height; float32 or float64
            (bfloat16 can't tell neighboring positions apart).
        weights: ``[B, Q, A, L, P]``.
        use_grid_sample: as ``grid_sample`` instead of bags of rows: slower, but ONNX has an operator for it.

    Returns:
        ``[B, Q, A·D]`` of ``value``'s dtype, computed in float32 at least.

    Raises:
        ValueError: if the shapes do not add up to S, or the levels are not L.
    """
    num_tokens = [height * width for height, width in shapes]
    if sum(num_tokens) != value.shape[1] or len(shapes) != locations.shape[3]:
        raise ValueError(
            f"The levels {shapes} do not fit {value.shape[1]} tokens and positions in {locations.shape[3]} levels."
        )
    compute_dtype = torch.promote_types(value.dtype, torch.float32)
    levels = zip(
        shapes,
        value.to(compute_dtype).split(num_tokens, dim=1),
        locations.to(compute_dtype).unbind(dim=3),
        weights.to(compute_dtype).unbind(dim=3),
    )
    attend_level = _sample_level if use_grid_sample else _LevelAttention.apply
    sums = [
        attend_level(tokens.unflatten(1, shape), level_locations, level_weights)
        for shape, tokens, level_locations, level_weights in levels
    ]
    return sum(sums[1:], start=sums[0]).flatten(2).to(value.dtype)


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few learned positions around their reference points, in every level.

    Args:
        hidden_dim: channels C of queries and tokens.
        num_heads: A; divides C.
        num_levels: L.
        num_points: P, positions of a query in each level and head.

    Attributes:
        use_grid_sample: see :func:`multi_scale_deformable_attention`; False at first.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_dim``.

    Example::

        attention = MultiScaleDeformableAttention(hidden_dim=256, num_heads=8, num_levels=2, num_points=4)
        shapes = [(8, 8), (4, 4)]
        tokens, query = torch.rand(1, 80, 256), torch.rand(1, 300, 256)
        attended = attention(query, torch.rand(1, 300, 2, 2), tokens, shapes)  # [1, 300, 256]
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim {hidden_dim} must be a multiple of num_heads {num_heads}.")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.use_grid_sample = False
        self.sampling_offsets = nn.Linear(hidden_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let each head look in a direction of its own, point p at p pixels, all with the same weight."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        ring = directions[:, None, None] * distances[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        shapes: list[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: ``[B, Q, C]``, its position included.
            reference: points (x, y) ``[B, Q, L, 2]`` or boxes (cx, cy, w, h) ``[B, Q, L, 4]`` as fractions of each
                padded level, float32. Offsets count in pixels of the level from a point, and in parts of its size
                from the center of a box.
            tokens: ``[B, S, C]``, row by row and level after level.
            shapes: (height, width) of every level.
            padding_mask: bool ``[B, S]``, True on padding, where values are zero; or None without padding.

        Returns:
            ``[B, Q, C]``

        Raises:
            ValueError: if ``reference`` is neither points nor boxes.
        """
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
        attended = multi_scale_deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            shapes,
            self._locations(query, reference, shapes),
            weights.unflatten(-1, (self.num_levels, self.num_points)),
            use_grid_sample=self.use_grid_sample,
        )
        return self.output_proj(attended)

    def _locations(self, query: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Positions ``[B, Q, A, L, P, 2]`` as fractions of each level, in float32 at least."""
        offsets = self.sampling_offsets(query)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        reference = reference.to(torch.promote_types(reference.dtype, torch.float32))[:, :, None, :, None]
        if reference.shape[-1] == 2:
            sizes = torch.tensor([(width, height) for height, width in shapes], dtype=reference.dtype)
            return reference + offsets / sizes.to(reference.device, non_blocking=True)[:, None]
        if reference.shape[-1] == 4:
            centers, sizes = reference.split(2, dim=-1)
            return centers + offsets * sizes * (0.5 / self.num_points)
        raise ValueError(f"reference must have 2 or 4 coordinates, not {reference.shape[-1]}.")


def _sample_level(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """As :meth:`_LevelAttention.forward`, by :func:`torch.nn.functional.grid_sample`, an image for each head."""
    maps = value.permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B·A, D, H, W]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B·A, Q, P, 2], from -1 to 1
    points = F.grid_sample(maps, grid, align_corners=False)  # [B·A, D, Q, P]
    sums = (points * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    return sums.unflatten(0, (value.shape[0], -1)).permute(0, 3, 1, 2)


class _LevelAttention(torch.autograd.Function):
    """Weighted sums at positions of one level, as bags of table rows: four corners a point.

    The backward pass computes rows and bilinear weights again. The gradient of the values is a sum of bags as
    well: of the queries that look at a token, found by sorting the points by their upper left corner.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """
        Args:
            value: ``[B, H, W, A, D]``.
            locations: ``[B, Q, A, P, 2]``.
            weights: ``[B, Q, A, P]``.

        Returns:
            ``[B, Q, A, D]``
        """
        ctx.save_for_backward(value, locations, weights)
        height, width = value.shape[1:3]
        rows, x, y = _rows_and_fractions(locations, (height, width))
        corner_weights = _bilinear(x, y) * weights.flatten(0, 2)[:, None]
        sums = _weighted_rows(_padded_table(value), _corner_rows(rows, value), corner_weights)
        return sums.unflatten(0, weights.shape[:3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        height, width = value.shape[1:3]
        grad = grad.contiguous().flatten(0, 2)
        rows, x, y = _rows_and_fractions(locations, (height, width))
        bilinear = _bilinear(x, y)
        flat_weights = weights.flatten(0, 2)
        corner_weights = bilinear * flat_weights[:, None]

        with torch.enable_grad():
            corner_weights.requires_grad_()
            sums = _weighted_rows(_padded_table(value), _corner_rows(rows, value), corner_weights)
        (grad_corners,) = torch.autograd.grad(sums, corner_weights, grad)
        upper_left, upper_right, lower_left, lower_right = grad_corners.unbind(dim=1)
        grad_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, y) * (flat_weights * width)
        grad_y = torch.lerp(lower_left - upper_left, lower_right - upper_right, x) * (flat_weights * height)
        return (
            _value_gradient(grad, rows, corner_weights.detach(), value),
            torch.stack([grad_x, grad_y], dim=-1).view_as(locations),
            (bilinear * grad_corners).sum(dim=1).view_as(weights),
        )


def _rows_and_fractions(locations: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Table rows (int64) of upper left corners, and the distances x and y from them in [0, 1): ``[B·Q·A, P]``."""
    batch_size, _, num_heads, _, _ = locations.shape
    height, width = size
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    # As integers, because a position that is not a number must not become a row out of the table.
    column = left.long().clamp(-_MARGIN, width) + _MARGIN
    row = top.long().clamp(-_MARGIN, height) + _MARGIN
    image = torch.arange(batch_size, device=locations.device)[:, None, None, None]
    head = torch.arange(num_heads, device=locations.device)[:, None]
    token = (image * (height + 2 * _MARGIN) + row) * (width + 2 * _MARGIN) + column
    return (token * num_heads + head).flatten(0, 2), (x - left).flatten(0, 2), (y - top).flatten(0, 2)


def _bilinear(x: Tensor, y: Tensor) -> Tensor:
    """Weights ``[R, 4, P]`` of the upper left, upper right, lower left and lower right corners."""
    right, lower = x, y
    left, upper = 1 - x, 1 - y
    return torch.stack([upper * left, upper * right, lower * left, lower * right], dim=1)


def _corner_rows(rows: Tensor, value: Tensor) -> Tensor:
    """Table rows ``[R, 4, P]`` of all corners, in the order of :func:`_bilinear`."""
    _, _, width, num_heads, _ = value.shape
    below = (width + 2 * _MARGIN) * num_heads
    return torch.stack([rows, rows + num_heads, rows + below, rows + below + num_heads], dim=1)


def _padded_table(value: Tensor) -> Tensor:
    """``[B, H, W, A, D]`` -> ``[B·(H + 4)·(W + 4)·A, D]`` with zeros around every image."""
    return F.pad(value, (0, 0, 0, 0) + (_MARGIN,) * 4).flatten(0, 3)


def _weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · row of the table: ``[N, D]``, ``[R, 4, P]``, ``[R, 4, P]`` -> ``[R, D]``."""
    return F.embedding_bag(rows.flatten(1), table, mode="sum", per_sample_weights=weights.flatten(1))


def _value_gradient(grad: Tensor, rows: Tensor, corner_weights: Tensor, value: Tensor) -> Tensor:
    """Gradient ``[B, H, W, A, D]`` of the values from that of the sums, ``[R, D]``."""
    batch_size, height, width, num_heads, _ = value.shape
    padded_shape = (batch_size, height + 2 * _MARGIN, width + 2 * _MARGIN, num_heads)
    sorted_rows, order = rows.flatten().sort()
    starts = torch.searchsorted(sorted_rows, torch.arange(math.prod(padded_shape), device=rows.device))
    source = order // rows.shape[1]
    total = torch.zeros_like(value)
    for corner, (down, right) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        by_upper_left = F.embedding_bag(
            source, grad, starts, mode="sum", per_sample_weights=corner_weights[:, corner].flatten()[order]
        ).unflatten(0, padded_shape)
        top, left = _MARGIN - down, _MARGIN - right
        total += by_upper_left[:, top : top + height, left : left + width]
    return total
