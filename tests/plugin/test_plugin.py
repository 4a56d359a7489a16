"""A package outside of updetr_d2 brings detectors and a task; they train, are evaluated and shown like ours."""

import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import PANOPTIC_RESNET18, tiny_cfg
from PIL import Image
from processes import run_processes

from updetr_d2.data.scenes.register import Split, register_scenes

FOLDER = Path(__file__).parent
SMALL = (
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.QUERY_PATCH.SIZE", 64),
    *("INPUT.DETR_CROP.PROB", 0.0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2),
    *("DATALOADER.NUM_WORKERS", 0, "MODEL.WEIGHTS", "", "TEST.ONESHOT.NUM_QUERIES", 1, "VIS_PERIOD", 2),
)


SCENES = "PLUGIN_SCENES"


def register(folder):
    register_scenes(folder, prefix="plugin", splits={"scenes": Split(700_000, 4, labeled=True)})


@pytest.fixture(name="scenes", scope="module")
def _scenes(tmp_path_factory):
    """Four labelled scenes, with boxes and as a panoptic data set; gives the name of the first."""
    name = "plugin_scenes"
    folder = tmp_path_factory.mktemp("scenes")
    register(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(SCENES, str(folder))  # for the processes of the scripts
        yield name
    for each in (name, f"{name}_panoptic"):
        DatasetCatalog.remove(each)
        MetadataCatalog.remove(each)


def run_script(name: str, *arguments: str) -> None:
    """Run a script of the plugin in a process of its own, which alone sees what it registers.

    Raises:
        AssertionError: with what the script says, if it fails.
    """
    ((status, message),) = run_processes(1, _run, name, arguments)
    assert status == 0, message


def _run(name: str, arguments: tuple[str, ...]) -> tuple[int | str, str]:
    """Gives the exit status and stderr; pytest can't capture that of a process that isn't its own child."""
    if SCENES in os.environ:
        register(Path(os.environ[SCENES]))
    sys.path.insert(0, str(FOLDER))
    sys.argv = [name, *arguments]
    status = 0
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code or 0
    return status, stderr.getvalue()


def train(folder: Path, meta_architecture: str, dataset: str, *options) -> tuple[dict, dict]:
    """Train with evaluation at the end; gives the metrics and the checkpoint."""
    data = ("DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,), "OUTPUT_DIR", str(folder / "run"))
    config = folder / "config.yaml"
    config.write_text(tiny_cfg(meta_architecture, *SMALL, *data, *options).dump())
    run_script("train_net.py", "--config-file", str(config))
    lines = (folder / "run" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    return metrics, torch.load(folder / "run" / "model_final.pth", weights_only=True)


def show(folder: Path, *arguments: str) -> tuple[dict, list[dict], set[str]]:
    """Run the demo on a picture; gives images.json, predictions.json and the kinds of pictures."""
    photo = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)).save(photo)
    command = ("--config-file", str(folder / "run" / "config.yaml"), "--output", str(folder / "out"))
    command += ("--score-threshold", "0", *arguments, str(photo))
    weights = ("MODEL.WEIGHTS", str(folder / "run" / "model_final.pth"))
    run_script("demo.py", *command, *weights)
    listing, predictions = (
        json.loads((folder / "out" / f"{name}.json").read_text()) for name in ("images", "predictions")
    )
    return listing, predictions, {path.parent.name for path in folder.glob("out/*/photo.jpg")}


@pytest.mark.slow
def test_a_detector_of_the_plugin_learns_the_classes_of_the_data(tmp_path, scenes):
    metrics, checkpoint = train(tmp_path, "ToyDETR", scenes, "MODEL.DETR.NUM_CLASSES", 0)
    assert "bbox/AP" in metrics
    assert checkpoint["model"]["class_embed.weight"].shape[0] == 8 + 1
    assert (checkpoint["meta_architecture"], checkpoint["task"]) == ("ToyDETR", "detection")
    listing, predictions, kinds = show(tmp_path)
    assert [each["name"] for each in listing["categories"]] == MetadataCatalog.get(scenes).thing_classes
    assert len(predictions) == 20
    assert kinds == {"pictures"}


@pytest.mark.slow
def test_a_pretext_of_the_plugin_is_pretraining(tmp_path, scenes):
    metrics, checkpoint = train(tmp_path, "ToyUPDETR", scenes, "MODEL.DETR.NUM_CLASSES", 2)
    assert any(name.startswith("query_patch/") for name in metrics), metrics
    assert (tmp_path / "run" / "pictures" / "iteration_0000002" / "0.png").is_file()
    assert checkpoint["task"] == "pretraining"
    assert set(checkpoint["pretraining_only"]) == {
        "class_embed",
        "patch2query",
        "patch_similarity",
        "feature_align",
        "pretext_head",
    }
    listing, predictions, _ = show(tmp_path, "--query-image", str(tmp_path / "photo.png"))
    assert [each["name"] for each in listing["categories"]] == ["patch 1"]
    assert len(predictions) == 1


@pytest.mark.slow
def test_a_one_shot_detector_of_the_plugin_gets_queries(tmp_path, scenes):
    metrics, checkpoint = train(tmp_path, "ToyOneShotDETR", scenes, "MODEL.DETR.NUM_CLASSES", 1)
    assert any(name.startswith("seen/") or "oneshot" in name for name in metrics), metrics
    assert checkpoint["task"] == "oneshot"
    listing, predictions, _ = show(tmp_path, "--query-image", str(tmp_path / "photo.png"))
    assert [each["name"] for each in listing["categories"]] == ["query"]
    assert len(predictions) == 20


@pytest.mark.slow
def test_a_panoptic_model_of_the_plugin_learns_masks_of_things_and_stuff(tmp_path, scenes):
    options = (*PANOPTIC_RESNET18, "MODEL.DETR.NUM_CLASSES", 0, "MODEL.MASK_HEAD.NUM_THING_CLASSES", 0)
    metrics, checkpoint = train(
        tmp_path, "ToyPanopticDETR", f"{scenes}_panoptic", *options, "MODEL.MASK_ON", True
    )
    assert "panoptic_seg/PQ" in metrics
    assert checkpoint["model"]["class_embed.weight"].shape[0] == 12 + 1
    assert "NUM_THING_CLASSES: 8" in (tmp_path / "run" / "config.yaml").read_text()
    _, predictions, kinds = show(tmp_path)
    assert "segmentation" in predictions[0]
    assert kinds == {"pictures", "panoptic"}


@pytest.mark.slow
def test_a_task_of_the_plugin_decides_on_everything(tmp_path, scenes):
    metrics, checkpoint = train(tmp_path, "ObjectCounter", scenes, "MODEL.MASK_ON", False)
    assert metrics["counting/images"] == 2  # of the test set that the task gives
    assert metrics["counting/mean_error"] > 0
    assert "loss_count" in str(sorted(metrics)) or metrics["total_loss"] > 0
    assert checkpoint["task"] == "counting"
    listing, predictions, kinds = show(tmp_path)
    assert [each["name"] for each in listing["categories"]] == ["objects"]
    assert predictions == []
    (kind,) = kinds
    assert kind.startswith("count_")


@pytest.mark.slow
def test_the_checks_of_the_plugin_s_task_count(tmp_path, scenes):
    with pytest.raises(AssertionError, match="an ObjectCounter has no masks"):
        train(tmp_path, "ObjectCounter", scenes, "MODEL.MASK_ON", True)
