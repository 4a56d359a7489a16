"""Pre-training from the command line on a folder of real files: train, resume, evaluate, several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL_PRETRAINING
from PIL import Image

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine good images of several kinds in a tree, and four files that no one can use."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        size = (96, 64) if i % 2 else (64, 96)
        noise = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    good = Image.open(folder / "0.jpg")
    good.convert("L").save(folder / "sub" / "grey.JPG")
    good.convert("CMYK").save(folder / "sub" / "cmyk.jpeg")
    good.convert("RGBA").save(folder / "sub" / "rgba.png")
    content = (folder / "1.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    good.resize((10, 10)).save(folder / "tiny.png")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def train_net(photos, output, *arguments, launcher=(), check=True):
    data = f'("folder:{photos}",)'
    command = [sys.executable, *launcher, str(ROOT / "tools/train_net.py")]
    command += ["--config-file", str(ROOT / "configs/pretrain/updetr_r50_imagenet_60ep.yaml")]
    flags = [a for a in arguments if a.startswith("--")]
    options = [a for a in arguments if not a.startswith("--")]
    command += [
        *flags,
        "DATASETS.TRAIN",
        data,
        "DATASETS.TEST",
        data,
        "OUTPUT_DIR",
        str(output),
        *SMALL_PRETRAINING,
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UPDETR_D2_CACHE": str(photos.parent / "cache")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if check:
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run


def final_weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def first_run(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("first_run")
    log = train_net(photos, output, "VIS_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2").stdout
    return output, log


def test_training_writes_what_detectron2_users_expect(first_run):
    output, _ = first_run
    names = {path.name for path in output.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    last = {key: value for line in metrics for key, value in line.items()}
    for name in (
        "loss_ce",
        "loss_bbox",
        "loss_giou",
        "loss_feature",
        "loss_ce_0",
        "class_error",
        "grad_norm",
    ):
        assert np.isfinite(last[name])
    assert {"query_patch/AP", "query_patch/AP50", "query_patch/mIoU"} <= set(last)


def test_pictures_are_drawn_in_training_and_at_evaluation(first_run):
    output, _ = first_run
    training = sorted(output.glob("pictures/iteration_*/*.png"))
    assert {path.parent.name for path in training} == {"iteration_0000002", "iteration_0000004"}
    evaluation = list(output.glob("inference/*/pictures/*.png"))
    assert len(evaluation) == 8
    assert np.asarray(Image.open(evaluation[0])).std() > 10


def test_unusable_files_are_named_once_and_counted(first_run):
    _, log = first_run
    report = log[log.index("Files skipped in training") :]
    for name in ("truncated.jpg", "empty.jpg", "text.jpg", "tiny.png"):
        assert name in log
    assert "notes.txt" not in log
    assert "files" in report.splitlines()[0]
    assert "90 patches of 9 images" in log  # 10 patches for each of the good images


def test_resume_continues_to_the_same_weights(photos, first_run, tmp_path):
    output, _ = first_run
    # Another number of loader workers must not matter, nor that the first run evaluated and drew pictures.
    interrupted = tmp_path / "run"
    train_net(photos, interrupted, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(3,)")
    log = train_net(photos, interrupted, "--resume", "DATALOADER.NUM_WORKERS", "2").stdout
    assert "Starting training from iteration 2" in log
    resumed, uninterrupted = final_weights(interrupted), final_weights(output)
    assert set(resumed) == set(uninterrupted)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)


def test_eval_only_repeats_the_evaluation_of_training(photos, first_run, tmp_path):
    output, _ = first_run
    train_net(photos, tmp_path, "--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth"))
    during, after = (
        json.loads(next(folder.glob("inference/*/query_patch_results.json")).read_text())
        for folder in (output, tmp_path)
    )
    assert during == after


def test_a_folder_without_usable_images_is_an_error(photos, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    run = train_net(folder, tmp_path / "out", check=False)
    assert run.returncode != 0
    assert "a.jpg" in run.stderr
    assert "DATASETS" in run.stderr


@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
def test_two_processes_train_the_same_weights_on_different_images(photos, tmp_path, launcher):
    good = tmp_path / "good"  # a replaced file could be one that the other process has
    good.mkdir()
    for i in range(9):
        shutil.copy(photos / f"{i % 6}.jpg", good / f"{i}.jpg")
    script = tmp_path / "train_and_compare.py"
    script.write_text(COMPARE.format(tools=str(ROOT / "tools")))
    data = f'("folder:{good}",)'
    arguments = ["--config-file", str(ROOT / "configs/pretrain/updetr_r50_imagenet_60ep.yaml")]
    if launcher == "launch":
        command = [sys.executable, str(script), *arguments, "--num-gpus", "2", "--dist-url", "auto"]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        command += [str(script), *arguments]
    command += [
        "DATASETS.TRAIN",
        data,
        "DATASETS.TEST",
        data,
        "OUTPUT_DIR",
        str(tmp_path / "out"),
        *SMALL_PRETRAINING,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UPDETR_D2_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "same weights: True, images in common: 0" in run.stdout
    # Nine good images, evaluated by two processes: none is lost, none doubled.
    assert "90 patches of 9 images" in run.stdout


COMPARE = """
import sys
sys.path.insert(0, {tools!r})
import torch
import train_net
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from updetr_d2.engine.launch import launch
from updetr_d2.engine.trainer import UPDETRTrainer

def main(args):
    cfg = train_net.setup(args)
    trainer = UPDETRTrainer(cfg)
    seen = []
    mapper = trainer.data_loader.mapper
    def remember(dataset_dict):
        seen.append(dataset_dict["file_name"])
        return mapper(dataset_dict)
    trainer.data_loader.mapper = remember
    trainer.train()
    state = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    states = comm.all_gather(state)
    images = comm.all_gather(seen[:4])
    if comm.is_main_process():
        common = len(set(images[0]) & set(images[1]))
        print(f"same weights: {{torch.equal(*states)}}, images in common: {{common}}")

if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args(), device="cpu")
"""
