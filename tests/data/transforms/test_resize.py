"""Images are resized to the sizes that DETR's rule gives, with Pillow's antialiased pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from updetr_d2.data.transforms.resize import DETRResize, detr_resized_shape, resize_uint8, shared_scale


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (375, 500, 320, (320, 426)),  # 426.67: the long side is rounded down
        (500, 375, 320, (426, 320)),
        (427, 640, 480, (400, 599)),  # 719 px > 600: short side 400.3 -> 400, long side 599.5 -> 599
        (100, 100, 480, (480, 480)),
        (17, 5000, 480, (2, 588)),  # short side 2.04 -> 2
        (17, 40000, 480, (1, 600)),  # short side 0.26, at least 1; the long side stays at the limit
        (33, 1000, 320, (20, 600)),  # short side 19.8 -> 20; the long side would be 606
    ],
)
def test_sizes_by_hand(height, width, short_side, expected):
    assert detr_resized_shape(height, width, short_side=short_side, max_size=600) == expected


@given(height=st.integers(17, 3000), width=st.integers(17, 3000), short_side=st.integers(17, 800))
def test_sizes_keep_the_shape_and_the_limit(height, width, short_side):
    new_h, new_w = detr_resized_shape(height, width, short_side=short_side, max_size=600)
    assert 1 <= min(new_h, new_w) <= short_side
    assert max(new_h, new_w) <= 600
    assert (new_h <= new_w) == (height <= width) or new_h == new_w
    scale = min(new_h, new_w) / min(height, width)
    # One px for the long side's rounding, and half a px of the short side seen along the long one.
    tolerance = 1 + 0.5 * max(height, width) / min(height, width)
    assert abs(max(new_h, new_w) - scale * max(height, width)) <= tolerance
    assert detr_resized_shape(width, height, short_side=short_side, max_size=600) == (new_w, new_h)


@pytest.mark.parametrize("size", [(128, 128), (90, 300), (501, 601)])
def test_pixels_are_pillows(size):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (320, 240))
    height, width = size
    reference = Image.fromarray(image[3:200, 10:300]).resize((width, height), Image.Resampling.BILINEAR)
    resized = resize_uint8(image[3:200, 10:300], height=height, width=width)
    assert np.abs(resized.astype(int) - np.asarray(reference).astype(int)).max() <= 1


def test_every_short_side_is_drawn_equally_often_and_boxes_follow():
    np.random.seed(0)
    image = np.zeros((200, 300, 3), np.uint8)
    resize = DETRResize((40, 50, 60), 600)
    heights = []
    for _ in range(600):
        transform = resize.get_transform(image)
        resized = transform.apply_image(image)
        heights.append(resized.shape[0])
        ratio = [resized.shape[1] / 300, resized.shape[0] / 200] * 2
        box = transform.apply_box(np.array([[30, 20, 150, 180]]))
        np.testing.assert_allclose(box, [np.array([30, 20, 150, 180]) * ratio])
    values, counts = np.unique(heights, return_counts=True)
    assert values.tolist() == [40, 50, 60]
    assert counts.min() > 150


def test_masks_keep_their_labels():
    mask = np.array([[0, 7], [7, 0]], np.uint8).repeat(20, 0).repeat(30, 1)
    resized = DETRResize((13,), 600).get_transform(mask).apply_segmentation(mask)
    assert set(np.unique(resized)) == {0, 7}


def test_sides_that_are_not_positive_are_an_error():
    with pytest.raises(ValueError, match=r"INPUT\.MIN_SIZE"):
        DETRResize((0,), 600)


def test_a_shared_scale_is_drawn_once_for_a_key_and_equally_often_for_keys():
    image = np.zeros((200, 300, 3), np.uint8)
    resize = DETRResize((40, 50, 60), 600, can_share=True)
    state = np.random.get_state()[1].tolist()
    drawn = []
    for key in range(300):
        with shared_scale(7, key):
            heights = {resize.get_transform(image).new_h for _ in range(3)}
        assert len(heights) == 1
        drawn += heights
    assert np.unique(drawn, return_counts=True)[1].min() > 70
    assert np.random.get_state()[1].tolist() == state  # what else the sample draws is as without it
    with shared_scale(7, 0):
        assert len({DETRResize((40, 50, 60), 600).get_transform(image).new_h for _ in range(30)}) == 3
    assert len({resize.get_transform(image).new_h for _ in range(30)}) == 3
