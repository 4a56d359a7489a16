"""The tokens of several feature levels, and where they are.

``B`` images, ``S`` tokens of all levels, ``V`` levels, ``N`` queries, ``C`` channels.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from updetr_d2.modeling.position_encoding import SinePositionEncoding
from updetr_d2.modeling.transformers.base import Pyramid, valid_part


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
        return torch.cat(
            [level_centers(shape, self.valid[:, level]) for level, shape in enumerate(self.shapes)], dim=1
        )

    def reference_points(self) -> Tensor:
        """:meth:`centers` as fractions of every padded level, ``[B, S, V, 2]`` (or 1 for B)."""
        return self.in_levels(self.centers())

    def in_levels(self, reference: Tensor) -> Tensor:
        """Points or boxes ``[B, N, 2 or 4]`` in the valid image -> those of each padded level ``[B, N, V, *]``."""
        valid = self.valid if reference.shape[-1] == 2 else self.valid.repeat(1, 1, 2)
        return reference[:, :, None] * valid[:, None]


def flatten_levels(
    pyramid: Pyramid, encoding: SinePositionEncoding, level_embed: Tensor, *, exact: bool
) -> Tokens:
    """Put the tokens of all levels into one row.

    Args:
        pyramid: the levels.
        encoding: of the positions.
        level_embed: ``[V, C]``, added to the positions.
        exact: tell the places of tokens in an image from the size of the image. Otherwise from the number of
            tokens that are not padding, as the official code does: an image of 104 rows in a batch of 128 then
            fills all four rows of a level of stride 32, and its tokens are not where their features come from.
    """
    levels = pyramid.levels
    shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
    if exact:
        valid = exact_valid_parts(pyramid, shapes)
        positions = [
            encoding.encode(level_centers(shape, valid[:, level])) for level, shape in enumerate(shapes)
        ]
    else:
        paddings = [
            padding
            if padding is not None
            else torch.zeros(1, *shape, dtype=torch.bool, device=levels[0].device)
            for padding, shape in zip(pyramid.paddings, shapes)
        ]
        valid = torch.stack([valid_part(padding) for padding in paddings], dim=1)
        positions = [encoding(padding).flatten(2).transpose(1, 2) for padding in paddings]
    padded = [padding for padding in pyramid.paddings if padding is not None]
    return Tokens(
        values=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
        position=torch.cat([position + embed for position, embed in zip(positions, level_embed)], dim=1),
        shapes=shapes,
        padding=torch.cat([padding.flatten(1) for padding in padded], dim=1) if padded else None,
        valid=valid,
    )


def exact_valid_parts(pyramid: Pyramid, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """``Tokens.valid`` from the sizes of the images.

    The backbone's levels cover the padded images; each further one has half of the tokens of the one before,
    rounded up, and may cover more.
    """
    parts = [pyramid.valid_part()] * (pyramid.coarsest + 1)
    for (height, width), (finer_height, finer_width) in zip(
        shapes[pyramid.coarsest + 1 :], shapes[pyramid.coarsest :]
    ):
        covered_x, covered_y = parts[-1].unbind(dim=-1)
        parts.append(
            torch.stack(
                [covered_x * (finer_width / (2 * width)), covered_y * (finer_height / (2 * height))], dim=-1
            )
        )
    return torch.stack(parts, dim=1)


def level_centers(shape: tuple[int, int], valid: Tensor) -> Tensor:
    """Centers (x, y) of the tokens of a level as fractions of the valid image, float32 ``[B, h·w, 2]``.

    Args:
        shape: (h, w).
        valid: valid part (width, height) of the level ``[B, 2]``.
    """
    height, width = shape
    y = (torch.arange(height, dtype=torch.float32, device=valid.device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=valid.device) + 0.5) / width
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
    return grid / valid[:, None]
