"""Boxes of random query patches follow the distribution that UP-DETR draws them from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updetr_d2.data.transforms.patch_boxes import random_patch_boxes


def draw(num_patches: int, width: int, height: int, *, min_size: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return random_patch_boxes(rng, width=width, height=height, num_patches=num_patches, min_size=min_size)


def test_the_distribution_on_an_image_small_enough_to_enumerate():
    """W = 5, p = 1: sw is uniform over 1 ... 4, then x over 0 ... 4 - sw (the upper end W - sw is excluded)."""
    num_draws = 40_000
    boxes = draw(num_draws, 5, 5, min_size=1)
    for low, high in ((0, 2), (1, 3)):
        expected = {(x, x + s): 1 / 4 / (5 - s) for s in range(1, 5) for x in range(5 - s)}
        pairs, counts = np.unique(boxes[:, [low, high]], axis=0, return_counts=True)
        assert {tuple(pair) for pair in pairs.tolist()} == set(expected)
        for pair, count in zip(pairs.tolist(), counts):
            probability = expected[tuple(pair)]
            deviation = np.sqrt(num_draws * probability * (1 - probability))
            assert abs(count - num_draws * probability) < 5 * deviation


def test_sides_reach_both_ends_and_patches_never_touch_the_far_border():
    boxes = draw(60_000, 40, 24)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert sizes.min(axis=0).tolist() == [8, 8]
    assert sizes.max(axis=0).tolist() == [40 - 8, 24 - 8]
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2:].max(axis=0).tolist() == [39, 23]


def test_width_and_height_are_independent_and_patches_too():
    sizes = np.diff(draw(20_000, 300, 300).reshape(-1, 2, 2), axis=1)[:, 0].astype(float)
    assert abs(np.corrcoef(sizes.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(sizes[:-1, 0], sizes[1:, 0])[0, 1]) < 0.03


@given(
    width=st.integers(16, 5000),
    height=st.integers(16, 5000),
    num_patches=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_boxes_lie_in_the_image_and_are_not_too_small(width, height, num_patches, seed):
    boxes = draw(num_patches, width, height, seed=seed)
    assert boxes.shape == (num_patches, 4)
    assert np.issubdtype(boxes.dtype, np.integer)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 8).all()
    np.testing.assert_array_equal(boxes, draw(num_patches, width, height, seed=seed))


@pytest.mark.parametrize(("width", "min_size"), [(15, 8), (100, 0)])
def test_impossible_patches_are_an_error_that_names_the_key(width, min_size):
    with pytest.raises(ValueError, match=r"INPUT\.QUERY_PATCH\.MIN_SIZE"):
        draw(1, width, 100, min_size=min_size)
