"""Learning curves: what metrics.json says is what is drawn; resumed and cut-off files are read right."""

import json

from updetr_d2.visualization.curves import plot_curves, read_metrics


def write_metrics(path, records: list[dict], tail: str = "") -> dict[str, dict[int, float]]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return read_metrics(path)


def test_each_run_is_a_line_with_its_points(tmp_path):
    a = write_metrics(
        tmp_path / "a.json",
        [{"iteration": 19, "total_loss": 3.0}, {"iteration": 39, "total_loss": 2.0, "bbox/AP": 10.0}],
    )
    b = write_metrics(
        tmp_path / "b.json", [{"iteration": 39, "bbox/AP": 5.0}, {"iteration": 79, "bbox/AP": 7.5}]
    )
    figure = plot_curves({"pre-trained": a, "from scratch": b}, ["bbox/AP", "total_loss"])
    ap, loss = figure.axes
    assert [line.get_label() for line in ap.lines] == ["pre-trained", "from scratch"]
    assert ap.lines[1].get_xydata().tolist() == [[39, 5.0], [79, 7.5]]
    assert loss.lines[0].get_xydata().tolist() == [[19, 3.0], [39, 2.0]]
    assert loss.lines[1].get_xydata().tolist() == []
    assert (ap.get_ylabel(), loss.get_ylabel()) == ("bbox/AP", "total_loss")


def test_a_long_legend_does_not_cover_the_curves():
    runs = {f"run {i}": {"a": {0: 1.0, 9: i}, "b": {0: 2.0}} for i in range(6)}
    few = plot_curves(dict(list(runs.items())[:2]), ["a", "b"])
    assert [len(axes.get_legend().get_texts()) for axes in few.axes] == [2, 2]
    figure = plot_curves(runs, ["a", "b"])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)
    assert all(axes.get_legend() is None for axes in figure.axes)
    assert all(axes.get_tightbbox().y0 >= legend.get_window_extent().y1 for axes in figure.axes)


def test_panels_are_wrapped_into_rows(tmp_path):
    curves = {name: {0: 1.0} for name in "abcd"}
    figure = plot_curves({"run": curves}, list("abcd"), columns=3)
    assert [axes.get_ylabel() for axes in figure.axes] == list("abcd")
    places = [axes.get_position() for axes in figure.axes]
    assert places[0].y0 == places[2].y0 > places[3].y0
    assert abs(places[0].x1 - places[3].x1) < 0.05


def test_later_values_of_a_resumed_run_count_and_a_cut_off_line_does_not(tmp_path):
    records = [{"iteration": i, "bbox/AP": v} for i, v in ((9, 1.0), (19, 2.0), (29, 3.0), (19, 2.5))]
    curves = write_metrics(tmp_path / "metrics.json", records, tail='{"iteration": 39, "bbox/A')
    assert list(curves["bbox/AP"].items()) == [(9, 1.0), (19, 2.5), (29, 3.0)]
