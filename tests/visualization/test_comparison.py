"""Figures of comparisons: what is drawn, from one seed to several, with results that are missing."""

import numpy as np
import pytest

from updetr_d2.visualization.boxes import pixels_of
from updetr_d2.visualization.comparison import (
    BOX_COLORS,
    draw_right_and_wrong,
    plot_confusion,
    plot_costs,
    plot_over_labels,
    plot_precision,
)


def test_curves_over_labels_have_the_mean_and_the_range():
    figure = plot_over_labels({"a": {10: [1.0, 3.0], 20: [4.0]}, "b": {10: [], 20: [2.0]}}, metric="AP")
    (axes,) = figure.axes
    first, second = (container.lines[0] for container in axes.containers)
    assert first.get_xydata().tolist() == [[10, 2], [20, 4]] and second.get_xydata().tolist() == [[20, 2]]
    (bars,) = axes.containers[0].lines[2]
    assert bars.get_segments()[0].tolist() == [[10, 1], [10, 3]]


def test_one_number_of_images_shows_every_seed():
    (axes,) = plot_over_labels({"a": {10: [1.0, 3.0]}, "b": {10: []}}, metric="AP").axes
    assert axes.lines[0].get_xdata().tolist() == [1, 3]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]


def test_confusion_costs_and_precision_name_what_they_show():
    (axes,) = plot_confusion(np.array([[3, 1], [2, 0]]), ["cat"]).axes
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "background"]
    (axes,) = plot_costs({"a": {"class": 3.0, "missed": 1.0}, "b": {"class": 0.0, "missed": 5.0}}).axes
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 0, 5]
    (axes,) = plot_precision({"a": np.linspace(1, 0, 101)}).axes
    assert axes.lines[0].get_xydata()[[0, -1]].tolist() == [[0, 1], [1, 0]]
    assert pixels_of(plot_confusion(np.zeros((41, 41), dtype=int), ["x"] * 40)).shape[2] == 3


@pytest.mark.parametrize("kind", ["right", "localization", "background"])
def test_boxes_have_the_color_of_their_kind(kind):
    boxes = np.array([[20.0, 30, 60, 70]])
    picture = draw_right_and_wrong(
        np.full((100, 100, 3), 128, dtype=np.uint8),
        boxes=boxes,
        captions=["cat 0.9"],
        kinds=[kind],
        missed=np.zeros((0, 4)),
    )
    color = [int(BOX_COLORS[kind][i : i + 2], 16) for i in (1, 3, 5)]
    scale = picture.shape[0] / 100
    edge = picture[int(70 * scale), int(40 * scale)].tolist()
    assert np.abs(np.array(edge) - color).max() < 30
    assert picture[int(50 * scale), int(40 * scale)].tolist() == [128] * 3
