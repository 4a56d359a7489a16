"""docs/slurm_train.sh as Slurm would run it, on one machine with two CPU processes under torchrun."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SMALL_PRETRAINING, write_photos

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job, with commands that do what Slurm's would on one machine."""
    commands = {
        "srun": 'exec "$@"',
        "scontrol": "echo 127.0.0.1",
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_NODELIST": "machine",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
        "PROCESSES_PER_NODE": "2",
        "RDZV_PORT": str(port),
    }


@pytest.mark.long
def test_two_processes_train_and_go_on(slurm, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    write_photos(photos, 8)
    output = tmp_path / "run"
    recipe = "configs/pretrain/updetr_r50_imagenet_60ep.yaml"
    options = [
        *SMALL_PRETRAINING,
        "SOLVER.EPOCHS",
        "0",
        "SOLVER.EPOCH_STEPS",
        "()",
        "SOLVER.CHECKPOINT_EPOCHS",
        "0",
    ]
    options += ["TEST.EVAL_EPOCHS", "0", "DATASETS.TRAIN", f"('folder:{photos}',)", "DATASETS.TEST", "()"]
    command = [
        "bash",
        "docs/slurm_train.sh",
        "--config-file",
        recipe,
        *options,
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
    ]
    for last in (2, 4):
        run = [*command, "SOLVER.MAX_ITER", str(last), "OUTPUT_DIR", str(output)]
        done = subprocess.run(run, cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
    iterations = [json.loads(line)["iteration"] for line in (output / "metrics.json").open()]
    assert iterations[-1] == 3
