"""The worked examples of CONTRIBUTING.md run as they stand there: their files, their commands, small settings."""

import csv
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from docs.pages import commands, python_files
from helpers import write_photos
from processes import run_processes

PAGE = "CONTRIBUTING.md"
COMMANDS = {command[-1].rpartition("/")[2]: command for command in commands(PAGE, "python train.py")}
SMALL = [
    *["MODEL.WEIGHTS", "", "MODEL.DETR.HIDDEN_DIM", "32", "MODEL.DETR.ENC_LAYERS", "1"],
    *["MODEL.DETR.DEC_LAYERS", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"],
    *["MODEL.DETR.NUM_QUERIES", "12", "INPUT.QUERY_PATCH.SIZE", "32", "TEST.VIS_IMAGES", "1"],
    *["INPUT.DETR_CROP.PROB", "0.0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"],
    *["TEST.EVAL_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0"],
]


@pytest.fixture(name="folder")
def _folder(tmp_path):
    """A folder with the files of the page, photos and boxes as CSV."""
    for name, code in python_files(PAGE).items():
        (tmp_path / name).write_text(code)
    (tmp_path / "images").mkdir()
    write_photos(tmp_path / "images", 4)
    for split, numbers in {"train": (0, 1, 2), "val": (3,)}.items():
        with open(tmp_path / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "x0", "y0", "x1", "y1"])
            for i in numbers:
                writer.writerow([f"{i}.jpg", "dog", 5, 10, 30, 40.5])
                writer.writerow([f"{i}.jpg", "cat", 20, 2, 50, 60])
    return tmp_path


def run(folder: Path, example: str, *options: str) -> tuple[dict, dict]:
    """Run the command of an example in a process of its own; gives the metrics and the checkpoint."""
    _, script, *arguments = COMMANDS[example]
    run_processes(1, _run, folder, script, [*arguments, *SMALL, *options])
    output = folder / "output" / example
    metrics = {
        key: value for line in (output / "metrics.json").open() for key, value in json.loads(line).items()
    }
    return metrics, torch.load(output / "model_final.pth", weights_only=True)


def _run(folder: Path, script: str, arguments: list[str]) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stopped:
        assert not stopped.code, stopped.code


def test_the_page_has_the_three_examples():
    assert set(COMMANDS) == {"my_detector", "my_pretext", "my_data"}
    assert set(python_files(PAGE)) == {"train.py", *(f"{name}.py" for name in COMMANDS)}


@pytest.mark.slow
def test_a_detector(folder):
    data = (
        "DATASETS.TRAIN",
        "('csv:train.csv@images',)",
        "DATASETS.TEST",
        "()",
        "MODEL.DETR.NUM_CLASSES",
        "2",
    )
    _, checkpoint = run(folder, "my_detector", *data)
    weight = checkpoint["model"]["transformer.reference_points.weight"]
    assert weight.shape == (2, 32)
    assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"], "nothing was trained"


@pytest.mark.slow
def test_a_pretext(folder):
    metrics, checkpoint = run(
        folder, "my_pretext", "DATASETS.TRAIN", "('folder:images',)", "DATASETS.TEST", "('folder:images',)"
    )
    assert "query_patch/AP" in metrics
    assert "turn_embed.weight" in checkpoint["model"]
    assert "turn_embed" in checkpoint["pretraining_only"]
    # Four turns, guessed: ln 4 a patch and layer.
    losses = [metrics[name] for name in ("loss_turn", "loss_turn_0")]
    assert np.allclose(losses, np.log(4), atol=0.8)


@pytest.mark.slow
def test_a_data_set(folder):
    metrics, checkpoint = run(folder, "my_data")
    assert checkpoint["model"]["class_embed.weight"].shape[0] == 2 + 1
    assert {"bbox/AP", "bbox/AP-cat", "bbox/AP-dog"} <= set(metrics)


@pytest.mark.slow
def test_a_data_set_that_is_not_there_is_named(folder):
    (folder / "train.csv").unlink()
    with pytest.raises(AssertionError, match=r"csv:train.csv@images': there is no file train\.csv"):
        run(folder, "my_data")
