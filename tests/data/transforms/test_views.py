"""Geometry of two views: boxes follow to 1e-4 px over all transforms, and what is hidden is counted exactly."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from updetr_d2.data.transforms.resize import DETRResize
from updetr_d2.data.transforms.strong_view import RandomRescale
from updetr_d2.data.transforms.views import map_between, map_boxes, visible_share

FLIPS = {
    "none": [],
    "horizontal": [T.RandomFlip(1.0)],
    "vertical": [T.RandomFlip(1.0, horizontal=False, vertical=True)],
    "perhaps": [T.RandomFlip()],
}
SCALES = {
    "one size": [DETRResize((97,), 333)],
    "many sizes": [DETRResize((480, 800, 1100), 1333)],
    "free": [DETRResize((333,), 1100), RandomRescale((0.3, 1.7))],  # single precision is 1e-4 px from 2048 on
}
CROPS = {
    "whole": [],
    "crop": [T.RandomCrop("absolute_range", (30, 200)), T.RandomCrop("relative", (0.7, 0.8))],
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("flip", FLIPS)
def test_boxes_of_the_weak_view_follow_into_the_strong_view(flip, scale, crop):
    np.random.seed(0)  # of the transforms
    rng = np.random.default_rng(0)
    for weak_flip in FLIPS.values():
        height, width = rng.integers(40, 700, 2)
        image = np.zeros((height, width, 3), np.uint8)
        corners = rng.uniform(0, (width, height), (9, 2, 2))
        boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
        weak = T.AugmentationList([*weak_flip, DETRResize((120, 800), 1333)])(T.AugInput(image))
        view = T.AugInput(image)
        strong = T.AugmentationList([*FLIPS[flip], *CROPS[crop], *SCALES[scale]])(view)
        found = map_boxes(torch.from_numpy(weak.apply_box(boxes)), map_between(weak, strong))
        limits = [*view.image.shape[1::-1]] * 2
        # Labels are in single precision, and inside of the view.
        learned = found.float().numpy().clip(0, limits)
        assert np.abs(learned - strong.apply_box(boxes).clip(0, limits)).max() < 1e-4


def test_the_map_of_a_flip_and_a_doubling_by_hand():
    image = np.zeros((10, 20, 3), np.uint8)
    weak = T.AugmentationList([T.RandomFlip(1.0)])(T.AugInput(image))
    strong = T.AugmentationList([RandomRescale((2.0, 2.0))])(T.AugInput(image))
    mapping = map_between(weak, strong)
    assert mapping.dtype == torch.float64
    assert mapping.tolist() == [[-2, 0, 40], [0, 2, 0]]
    assert map_boxes(torch.tensor([[1.0, 2.0, 5.0, 4.0]]), mapping).tolist() == [[30, 4, 38, 8]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_the_visible_share_is_that_of_counted_pixels(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 30, 2)
    corners = rng.integers(-8, 38, (6, 2, 2))
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    inside = rng.integers(0, (width + 1, height + 1), (rng.integers(0, 4), 2, 2))
    erased = np.concatenate((inside.min(axis=1), inside.max(axis=1)), axis=1)
    seen = np.zeros((60, 60), bool)  # moved by 10, so that all boxes are in it
    seen[10 : 10 + height, 10 : 10 + width] = True
    for x0, y0, x1, y1 in erased + 10:
        seen[y0:y1, x0:x1] = False
    found = visible_share(torch.from_numpy(boxes), (int(height), int(width)), torch.from_numpy(erased))
    for share, (x0, y0, x1, y1) in zip(found.tolist(), boxes + 10):
        pixels = seen[y0:y1, x0:x1]
        assert share == pytest.approx(pixels.mean() if pixels.size else 0.0)
