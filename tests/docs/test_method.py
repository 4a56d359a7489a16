"""The picture of the method shows what it is given: groups, mask, costs and matches in the patches' colours."""

import numpy as np
import pytest

from method import draw_method
from updetr_d2.visualization.boxes import patch_colors

NUM_PATCHES, GROUP_SIZE = 2, 3


@pytest.fixture(name="step")
def _step():
    """A grey image, two patches in the middle of it, six queries, the second and the fourth of them matched."""
    num_queries = NUM_PATCHES * GROUP_SIZE
    group = np.arange(num_queries) // GROUP_SIZE
    return {
        "image": np.full((60, 90, 3), 128, np.uint8),
        "patches": np.full((NUM_PATCHES, 16, 16, 3), 40, np.uint8),
        "true_boxes": np.array([[10, 10, 40, 30], [50, 20, 80, 50]], float),
        "query_mask": group[:, None] != group[None, :],
        "predicted_boxes": np.tile([5.0, 5.0, 85.0, 55.0], (num_queries, 1)),
        "cost": np.linspace(0, 1, num_queries * NUM_PATCHES).reshape(num_queries, NUM_PATCHES),
        "matched_queries": np.array([1, 3]),
        "matched_patches": np.array([0, 1]),
    }


def draw(step, **changes):
    return draw_method(**{**step, **changes})


def panel(picture, row, column):
    """One of the six panels, without its margin, which may belong to the next one."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 3
    inner = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return inner[30:-30, 30:-30]


def near(picture, color) -> np.ndarray:
    return np.abs(picture.astype(int) - np.round(np.asarray(color) * 255)).max(axis=2) <= 6


def count(picture, color) -> int:
    return near(picture, color).sum()


def test_every_group_sees_itself_in_its_colour(step):
    mask = panel(draw(step), 0, 2)
    seen = [count(mask, 0.45 + 0.55 * color) for color in patch_colors(NUM_PATCHES)]
    forbidden = count(mask, (0.88, 0.88, 0.88))
    # Two blocks of 3x3 of the 6x6 cells.
    assert min(seen) > 1000
    assert abs(sum(seen) / forbidden - 1) < 0.1
    everything = panel(draw(step, query_mask=np.zeros_like(step["query_mask"])), 0, 2)
    assert count(everything, (0.88, 0.88, 0.88)) < forbidden / 50


def test_every_panel_shows_its_own_part_of_the_step(step):
    """A change of an input changes the panels that it belongs to and no others."""
    before = draw(step)
    moved = step["true_boxes"] + [[5, 5, 5, 5], [0, 0, 0, 0]]
    changes = {
        "true_boxes": (moved, {(0, 0), (1, 2)}),
        "patches": (step["patches"] + np.uint8(90), {(0, 1)}),
        "query_mask": (~step["query_mask"], {(0, 2)}),
        "predicted_boxes": (step["predicted_boxes"] * 0.8, {(1, 0), (1, 2)}),
        "cost": (step["cost"] ** 3, {(1, 1)}),
        "matched_queries": (np.array([2, 3]), {(1, 1)}),
    }
    for name, (value, panels) in changes.items():
        after = draw(step, **{name: value})
        changed = {
            (row, column)
            for row in range(2)
            for column in range(3)
            if (panel(before, row, column) != panel(after, row, column)).any()
        }
        assert changed == panels, name


def test_matches_are_framed_in_the_colour_of_their_patch(step):
    costs = panel(draw(step), 1, 1)
    assert min(count(costs, color) for color in patch_colors(NUM_PATCHES)) > 100
    upper, lower = (np.nonzero(near(costs, color))[0].mean() for color in patch_colors(NUM_PATCHES))
    assert upper < lower
