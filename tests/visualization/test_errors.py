"""Figures of errors: what is drawn, in which color, and that nothing written covers anything else written."""

import numpy as np
import pytest

from updetr_d2.visualization.boxes import pixels_of
from updetr_d2.visualization.captions import place_captions
from updetr_d2.visualization.errors import (
    BOX_COLORS,
    draw_errors,
    most_confused,
    plot_class_precision,
    plot_confusion,
    plot_costs,
    plot_precision,
)

NOTHING = np.zeros((0, 4))


def draw(image=None, *, boxes=NOTHING, captions=(), kinds=(), true_boxes=NOTHING, missed=()):
    image = np.full((100, 100, 3), 128, dtype=np.uint8) if image is None else image
    return draw_errors(
        image,
        boxes=np.asarray(boxes, dtype=float),
        captions=captions,
        kinds=kinds,
        true_boxes=np.asarray(true_boxes, dtype=float),
        true_captions=["cat"] * len(true_boxes),
        missed=np.asarray(missed, dtype=bool),
    )


def test_confusion_costs_and_precision_name_what_they_show():
    (axes,) = plot_confusion(np.array([[3, 1], [2, 0]]), ["cat"]).axes
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "background"]
    (axes,) = plot_costs({"a": {"class": 3.0, "missed": 1.0}, "b": {"class": 0.0, "missed": 5.0}}).axes
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 0, 5]
    (axes,) = plot_precision({"a": np.linspace(1, 0, 101)}).axes
    assert axes.lines[0].get_xydata()[[0, -1]].tolist() == [[0, 1], [1, 0]]
    assert pixels_of(plot_confusion(np.zeros((41, 41), dtype=int), ["x"] * 40)).shape[2] == 3


def test_of_many_classes_the_confused_ones_are_shown():
    matrix = np.diag(np.arange(1, 52)) * 100
    matrix[40, 7] = 5  # objects of class 40 found as class 7
    matrix[3, 50] = 9  # missed: no confusion of two classes
    shown, names = most_confused(matrix, [f"class {i}" for i in range(50)])
    assert {"class 7", "class 40"} <= set(names) and len(names) == 30
    row, column = names.index("class 40"), names.index("class 7")
    assert shown.shape == (31, 31) and shown[row, column] == 5
    assert shown[names.index("class 3"), -1] == 9


def test_of_many_classes_the_best_and_the_worst_have_curves():
    curves = {f"class {i}": np.full(101, i / 20) for i in range(20)}
    (axes,) = plot_class_precision(curves).axes
    heights = [line.get_ydata()[0] for line in axes.lines]
    assert heights == [0.95, 0.9, 0.85, 0.8, 0.75, 0.2, 0.15, 0.1, 0.05, 0.0]


@pytest.mark.parametrize("kind", [kind for kind in BOX_COLORS if kind != "missed"])
def test_boxes_have_the_color_of_their_kind(kind):
    picture = draw(boxes=[[20, 30, 60, 70]], captions=["cat 0.9"], kinds=[kind])
    color = [int(BOX_COLORS[kind][i : i + 2], 16) for i in (1, 3, 5)]
    scale = picture.shape[0] / 100
    assert picture[round(70 * scale), round(40 * scale)].tolist() == color
    assert picture[round(50 * scale), round(40 * scale)].tolist() == [128] * 3


def test_labels_are_dashed_and_bold_where_they_are_missed():
    boxes = [[10, 10, 40, 90], [60, 10, 90, 90]]
    picture = draw(true_boxes=boxes, missed=[False, True])
    scale = picture.shape[0] / 100
    sides = [picture[round(30 * scale) : round(70 * scale), round(x * scale)] for x in (40, 90)]
    for side in sides:
        white = (side == 255).all(axis=1)
        assert 0.3 < white.mean() < 0.7  # dashes
    assert not (sides[0] == 0).all(axis=1).any() and (sides[1] == 0).all(axis=1).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (2000, 1000)])
def test_images_of_any_size_are_drawn(size):
    height, width = size
    picture = draw(
        np.zeros((*size, 3), np.uint8),
        boxes=[[0, 0, width, height], [width, height, -5, -5]],
        captions=["a 0.5", "動物 0.4"],
        kinds=["class", "right"],
        true_boxes=[[0, 0, width, height]],
        missed=[True],
    )
    assert max(picture.shape[:2]) == 640 and picture.dtype == np.uint8


@pytest.mark.parametrize("seed", range(20))
def test_captions_do_not_cover_each_other(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-10, 190, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 90, (40, 2))], axis=1)
    sizes = [(float(w), 14.0) for w in rng.uniform(10, 90, 40)]
    places = place_captions(boxes, sizes, width=200, height=150)
    taken = [place for place in places if place is not None]
    assert len(taken) >= 8 and places[0] is not None
    for i, (x0, y0, x1, y1) in enumerate(taken):
        assert x0 >= 0 and y0 >= 0 and x1 <= 200 + 1e-9 and y1 <= 150 + 1e-9
        for u0, v0, u1, v1 in taken[:i]:
            assert min(x1, u1) <= max(x0, u0) or min(y1, v1) <= max(y0, v0)


def test_a_caption_stands_above_its_box_if_it_can():
    (place,) = place_captions(np.array([[20.0, 30, 80, 90]]), [(40, 14)], width=100, height=100)
    assert place == (20, 16, 60, 30)
    assert place_captions(np.array([[20.0, 30, 80, 90]]), [(140, 14)], width=100, height=100) == [None]


def test_captions_of_errors_come_before_those_of_right_boxes():
    """Two boxes in a picture with room for one caption."""
    boxes = [[-9, -9, 700, 700]] * 2  # their frames are outside
    image = np.full((20, 640, 3), 128, dtype=np.uint8)
    many = "w" * 40
    picture = draw(image, boxes=boxes, captions=[many, many], kinds=["right", "background"])
    red = (picture == [0xEF, 0x44, 0x44]).all(axis=-1).mean()
    green = (picture == [0x22, 0xC5, 0x5E]).all(axis=-1).mean()
    assert red > 0.3 and green < 0.01
