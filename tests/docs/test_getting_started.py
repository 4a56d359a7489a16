"""The trainer of GETTING_STARTED.md, a plain ``DefaultTrainer`` of Detectron2, trains as it stands there."""

import json
import os
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.solver import build_optimizer
from docs.pages import python_files
from helpers import SMALL_DETR
from processes import run_processes

from updetr_d2 import get_config
from updetr_d2.data.scenes.register import Split, register_scenes

BASE = "voc/detr_r50_voc_150ep.yaml"


@pytest.fixture(name="folder")
def _folder(tmp_path):
    """The example beside a config of small settings on a recipe, four scenes in two epochs."""
    (tmp_path / "own_trainer.py").write_text(python_files("docs/GETTING_STARTED.md")["own_trainer.py"])
    cfg = get_config(BASE)
    data = ["DATASETS.TRAIN", ("own_train",), "DATASETS.TEST", ("own_train",), "MODEL.DETR.NUM_CLASSES", 8]
    schedule = ["SOLVER.EPOCHS", 2, "SOLVER.EPOCH_STEPS", (1,), "OUTPUT_DIR", str(tmp_path / "run")]
    cfg.merge_from_list([*SMALL_DETR, *data, *schedule])
    (tmp_path / "my_detector.yaml").write_text(cfg.dump())
    return tmp_path


def _run(folder: Path) -> None:
    register_scenes(folder / "scenes", prefix="own", splits={"train": Split(700_000, 4, labeled=True)})
    os.chdir(folder)
    runpy.run_path("own_trainer.py", run_name="__main__")


@pytest.mark.slow
def test_it_trains_and_evaluates(folder):
    run_processes(1, _run, folder)
    lines = (folder / "run" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert "bbox/AP" in metrics
    assert metrics["total_loss"] > 0
    checkpoint = torch.load(folder / "run" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 3  # two epochs of two batches
    groups = checkpoint["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {1e-4, 1e-5}  # of the transformer and of the CNN
    assert max(group["lr"] for group in groups) == pytest.approx(1e-5)  # after the drop at one epoch


def test_its_optimizer_clips_the_norm_of_the_whole_model(folder):
    trainer = runpy.run_path(str(folder / "own_trainer.py"))["OwnTrainer"]
    cfg = get_config(BASE)
    model = torch.nn.Linear(3, 3)
    optimizer = trainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    norm = sum(parameter.grad.square().sum() for parameter in model.parameters()).sqrt()
    assert norm.item() == pytest.approx(cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, rel=1e-4)


def test_detectron2_s_own_optimizer_does_not_know_this_clipping():
    with pytest.raises(ValueError, match="full_model"):
        build_optimizer(get_config(BASE), torch.nn.Linear(3, 3))
