"""Sine position encoding against its formula, one number at a time."""

import math

import pytest
import torch

from updetr_d2.config.build import arguments_as_keys
from updetr_d2.modeling.position_encoding import SinePositionEncoding


def encode_one(mask, row, column, channels):
    """The encoding of one pixel: y in the first half of the channels, x in the second, sin and cos in turns."""
    rows, columns = len(mask), len(mask[0])
    count_y = sum(not mask[r][column] for r in range(row + 1))
    count_x = sum(not mask[row][c] for c in range(column + 1))
    total_y = sum(not mask[r][column] for r in range(rows))
    total_x = sum(not mask[row][c] for c in range(columns))
    half = channels // 2
    values = []
    for count, total in ((count_y, total_y), (count_x, total_x)):
        radians = count / (total + 1e-6) * 2 * math.pi
        for i in range(half):
            angle = radians / 10000 ** (2 * (i // 2) / half)
            values.append(math.sin(angle) if i % 2 == 0 else math.cos(angle))
    return values


def test_equals_the_formula_with_and_without_padding():
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[1, 2:] = True
    mask[1, :, 3:] = True
    encoding = SinePositionEncoding(12)(mask)
    assert encoding.shape == (2, 12, 3, 5)
    for image in range(2):
        for row in range(3):
            for column in range(5):
                expected = encode_one(mask[image].tolist(), row, column, 12)
                torch.testing.assert_close(
                    encoding[image, :, row, column], torch.tensor(expected), atol=1e-4, rtol=0
                )


def test_padding_does_not_move_the_coordinates_of_the_image():
    mask = torch.ones(1, 6, 7, dtype=torch.bool)
    mask[:, :4, :5] = False
    encode = SinePositionEncoding(8)
    torch.testing.assert_close(encode(mask)[..., :4, :5], encode(torch.zeros(1, 4, 5, dtype=torch.bool)))


def test_width_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match=r"HIDDEN_DIM is 30; .* multiple of 4"), arguments_as_keys():
        SinePositionEncoding(30)
