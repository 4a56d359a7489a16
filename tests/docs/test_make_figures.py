"""The figures of the documentation: drawn from a model alone, the same each time; each is one that docs show."""

import json
import re
from pathlib import Path

import make_figures
import numpy as np
import pytest
from helpers import TOOLS, save_tiny_model
from PIL import Image

from benchmarks.quickstart.coins import write_coins
from benchmarks.quickstart.places import Places

OPTIONS = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "INPUT.QUERY_PATCH.SIZE", 64)
OPTIONS += ("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96)


@pytest.fixture(name="tool", scope="module")
def _tool():
    make_figures.setup_logger = lambda **_: None  # handlers would outlive the captured streams of a test
    return make_figures


def save_run(folder: Path, meta_architecture: str, *options) -> None:
    """A run with a tiny random model."""
    folder.mkdir(parents=True)
    save_tiny_model(folder, meta_architecture, *OPTIONS, *options)
    (folder / "model.pth").rename(folder / "model_final.pth")


@pytest.fixture(name="quickstart")
def _quickstart(tmp_path):
    """The output of a quickstart with tiny random models; a pre-training of scenes is beside it."""
    rng = np.random.default_rng(0)
    (tmp_path / "scenes").mkdir()
    pixels = Image.fromarray(rng.integers(256, size=(8, 12, 3), dtype=np.uint8))
    pixels.resize((96, 64)).save(tmp_path / "scenes" / "0.png")
    save_run(tmp_path / "pretrain", "UPDETR", "DATASETS.TEST", (f"folder:{tmp_path / 'scenes'}",))
    files = Places(tmp_path / "quickstart")
    save_run(files.pretraining, "UPDETR", "INPUT.QUERY_PATCH.MIN_SIZE", 16, "INPUT.MIN_IMAGE_SIDE", 32)
    save_run(files.comparison / "runs" / "a", "DETR")
    write_coins(files.family("test"), "test", 2)
    content = {
        "contestants": [{"name": "a", "title": "a detector"}],
        "runs": [{"contestant": "a", "percent": 100.0, "folder": "runs/a"}],
    }
    files.results.write_text(json.dumps(content))
    return files.output


def run(tool, quickstart, output, monkeypatch) -> int:
    monkeypatch.setattr(tool, "why_no_browser", lambda: "a browser")
    photo = str(quickstart.parent / "scenes" / "0.png")
    pretrained = quickstart.parent / "pretrain"
    arguments = [
        "--quickstart",
        quickstart,
        "--scenes",
        pretrained,
        "--transfer",
        pretrained,
        "--photo",
        photo,
    ]
    return tool.main([str(part) for part in (*arguments, "--output", output)])


def test_figures_are_the_same_each_time(tool, quickstart, tmp_path, monkeypatch, capsys):
    for name in ("first", "second"):
        assert run(tool, quickstart, tmp_path / name, monkeypatch) == 0
    assert "except demo_app.png (a browser is not installed" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["attention.png", "how_it_works.png", "learning_curves_500.png", "quickstart.png"]
    for name in files:
        first, second = (np.asarray(Image.open(tmp_path / run / name)) for run in ("first", "second"))
        np.testing.assert_array_equal(first, second)
        assert first.std() > 20


def test_what_other_trainings_are_needed_for_is_left(tool, quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "why_no_browser", lambda: None)
    monkeypatch.setattr(tool, "photograph_demo", lambda quickstart, path: None)
    arguments = [
        "--quickstart",
        quickstart,
        "--scenes",
        tmp_path / "nowhere",
        "--transfer",
        tmp_path / "nowhere",
    ]
    arguments += ["--photo", quickstart.parent / "scenes" / "0.png", "--output", tmp_path / "out"]
    assert tool.main([str(part) for part in arguments]) == 0
    shown = capsys.readouterr().out
    assert "attention.png (python tools/transfer_benchmark.py has not run)" in shown
    assert "how_it_works.png (there is no model of configs/quickstart/updetr_lite0_scenes.yaml)" in shown
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["learning_curves_500.png", "quickstart.png"]


def test_a_missing_quickstart_is_answered_in_a_sentence(tool, tmp_path, monkeypatch, capsys):
    assert run(tool, tmp_path / "nowhere", tmp_path / "out", monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "run `make quickstart` first" in error
    assert not (tmp_path / "out").exists()


def test_pictures_are_drawn_for_pages_that_show_them(tool):
    """None is drawn for nothing, and none lies about that no page shows."""
    root = TOOLS.parent
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w.-]+)", page.read_text())}
    drawn = set(re.findall(r"[\w-]+\.png", tool.__doc__))
    drawn_here = {"quickstart.png", "how_it_works.png", "learning_curves_500.png", "attention.png"}
    assert drawn == {*drawn_here, "demo_app.png"}
    assert drawn <= shown
    assert {path.name for path in (root / "docs/images").iterdir()} <= shown
