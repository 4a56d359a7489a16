"""Figures of comparisons: what is drawn, from one seed to several, with results that are missing."""

from updetr_d2.visualization.comparison import plot_over_labels


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
