"""The figures of the documentation: drawn from a model alone, the same each time; each is one that docs show."""

import re

import make_figures
import numpy as np
import pytest
import torch
from detectron2.structures.boxes import matched_pairwise_iou
from helpers import TOOLS, save_tiny_model
from PIL import Image

from updetr_d2.inference.predictor import setup_inference_config
from updetr_d2.tasks import build_mapper
from updetr_d2.visualization.boxes import draw_query_patch_sample

OPTIONS = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "INPUT.QUERY_PATCH.SIZE", 64)
OPTIONS += ("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96)


@pytest.fixture(name="tool", scope="module")
def _tool():
    make_figures.setup_logger = lambda **_: None  # handlers would outlive the captured streams of a test
    return make_figures


@pytest.fixture(name="quickstart")
def _quickstart(tmp_path):
    """The output of a quickstart with a tiny random model, whose test set is a folder of four images."""
    rng = np.random.default_rng(0)
    (tmp_path / "scenes").mkdir()
    for i in range(4):
        pixels = Image.fromarray(rng.integers(256, size=(8, 12, 3), dtype=np.uint8))
        pixels.resize((96, 64)).save(tmp_path / "scenes" / f"{i}.png")
    folder = tmp_path / "quickstart" / "pretrain"
    folder.mkdir(parents=True)
    save_tiny_model(folder, "UPDETR", *OPTIONS, "DATASETS.TEST", (f"folder:{tmp_path / 'scenes'}",))
    (folder / "model.pth").rename(folder / "model_final.pth")
    return folder.parent


def run(tool, quickstart, output, monkeypatch) -> int:
    monkeypatch.setattr(tool, "why_no_browser", lambda: "a browser")
    photo = str(quickstart.parent / "scenes" / "0.png")
    arguments = ["--quickstart", quickstart, "--transfer", quickstart / "pretrain", "--photo", photo]
    return tool.main([str(part) for part in (*arguments, "--output", output)])


def test_figures_are_the_same_each_time(tool, quickstart, tmp_path, monkeypatch, capsys):
    for name in ("first", "second"):
        assert run(tool, quickstart, tmp_path / name, monkeypatch) == 0
    assert "except demo_app.png (a browser is not installed" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["attention.png", "how_it_works.png", "learning_curves_500.png", "query_patches.png"]
    for name in files:
        first, second = (np.asarray(Image.open(tmp_path / run / name)) for run in ("first", "second"))
        np.testing.assert_array_equal(first, second)
        assert first.std() > 20


@torch.no_grad()
def test_the_scene_is_the_one_whose_patches_are_found_best(tool, quickstart):
    folder = quickstart / "pretrain"
    cfg = setup_inference_config(
        str(folder / "config.yaml"), ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    )
    model = tool.load_trained_model(cfg)
    mapper = build_mapper(cfg, is_train=False)
    ious, pictures = [], []
    for path in sorted((quickstart.parent / "scenes").iterdir()):
        sample = mapper({"file_name": str(path)})
        found = model([sample])[0]["instances"]
        boxes = found.pred_boxes[: len(sample["patches"])]  # the images are not resized
        ious.append(matched_pairwise_iou(boxes, sample["instances"].gt_boxes).mean().item())
        pictures.append(draw_query_patch_sample(sample, found, "RGB"))
    assert len(set(ious)) == 4
    np.testing.assert_array_equal(tool.draw_best_scene(cfg, model), pictures[int(np.argmax(ious))])


def test_without_the_transfer_benchmark_the_rest_is_drawn(tool, quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "why_no_browser", lambda: None)
    monkeypatch.setattr(tool, "photograph_demo", lambda quickstart, path: None)
    photo = str(quickstart.parent / "scenes" / "0.png")
    arguments = ["--quickstart", quickstart, "--transfer", tmp_path / "nowhere", "--photo", photo]
    assert tool.main([str(part) for part in (*arguments, "--output", tmp_path / "out")]) == 0
    assert "except attention.png (python tools/transfer_benchmark.py has not run)" in capsys.readouterr().out
    assert not (tmp_path / "out/attention.png").exists()
    assert (tmp_path / "out/how_it_works.png").exists()


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
    drawn_here = {"query_patches.png", "how_it_works.png", "learning_curves_500.png", "attention.png"}
    assert drawn == {*drawn_here, "demo_app.png"}
    assert drawn <= shown
    assert {path.name for path in (root / "docs/images").iterdir()} <= shown
