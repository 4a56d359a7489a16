"""The command line that draws learning curves."""

import json
from pathlib import Path

import pytest
from PIL import Image

from updetr_d2.cli import curves


@pytest.fixture(name="tool", scope="module")
def _tool():
    return curves


def write_run(folder: Path, records: list[dict], tail: str = "") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "metrics.json").write_text(text)
    return folder


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
