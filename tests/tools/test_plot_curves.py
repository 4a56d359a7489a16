"""Learning curves: what metrics.json says is what is drawn; resumed and cut-off files are read right."""

import json
from pathlib import Path

import pytest
from helpers import load_tool
from PIL import Image


@pytest.fixture(name="tool", scope="module")
def _tool():
    return load_tool("plot_curves")


def write_run(folder: Path, records: list[dict], tail: str = "") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "metrics.json").write_text(text)
    return folder


def test_each_run_is_a_line_with_its_points(tool, tmp_path):
    a = write_run(
        tmp_path / "a",
        [{"iteration": 19, "total_loss": 3.0}, {"iteration": 39, "total_loss": 2.0, "bbox/AP": 10.0}],
    )
    b = write_run(tmp_path / "b", [{"iteration": 39, "bbox/AP": 5.0}, {"iteration": 79, "bbox/AP": 7.5}])
    runs = {"pre-trained": a, "from scratch": b}
    curves = {label: tool.read_metrics(folder / "metrics.json") for label, folder in runs.items()}
    figure = tool.plot_curves(curves, ["bbox/AP", "total_loss"])
    ap, loss = figure.axes
    assert [line.get_label() for line in ap.lines] == ["pre-trained", "from scratch"]
    assert ap.lines[1].get_xydata().tolist() == [[39, 5.0], [79, 7.5]]
    assert loss.lines[0].get_xydata().tolist() == [[19, 3.0], [39, 2.0]]
    assert loss.lines[1].get_xydata().tolist() == []
    assert (ap.get_ylabel(), loss.get_ylabel()) == ("bbox/AP", "total_loss")


def test_later_values_of_a_resumed_run_count_and_a_cut_off_line_does_not(tool, tmp_path):
    records = [{"iteration": i, "bbox/AP": v} for i, v in ((9, 1.0), (19, 2.0), (29, 3.0), (19, 2.5))]
    run = write_run(tmp_path / "run", records, tail='{"iteration": 39, "bbox/A')
    curves = tool.read_metrics(run / "metrics.json")
    assert list(curves["bbox/AP"].items()) == [(9, 1.0), (19, 2.5), (29, 3.0)]


def test_the_command_writes_a_picture(tool, tmp_path, capsys):
    runs = [write_run(tmp_path / name, [{"iteration": 1, "bbox/AP": 1.0}]) for name in "ab"]
    output = tmp_path / "pictures" / "curves.png"
    assert tool.main([*map(str, runs), "--labels", "A", "B", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        assert picture.getextrema() != ((255, 255),) * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--metric", "bbox/AP51"], "No run has logged 'bbox/AP51'; there are bbox/AP, lr."),
        (["nowhere"], "cannot be read"),
        (["run", "run"], "as many different labels"),
        (["run", "--labels", "a", "b"], "as many different labels"),
        (["empty"], "holds no metrics"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(tool, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [{"iteration": 1, "bbox/AP": 1.0, "lr": 0.1}])
    write_run(tmp_path / "empty", [], tail="not json\n")
    assert tool.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "curves.png").exists()
