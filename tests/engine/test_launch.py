"""Processes of Detectron2's launcher end without an accident."""

import atexit
import contextlib
import sys
from argparse import Namespace

import pytest
import torch.distributed as dist
from detectron2.utils import comm

from updetr_d2.engine.launch import launch
from updetr_d2.engine.preemption import STOPPED_EXIT_CODE


def note_group_at_the_end(args: Namespace) -> None:
    """PyTorch's gloo threads abort one in some ten processes that end with a process group."""
    path = args.folder / f"rank_{comm.get_rank()}"
    atexit.register(lambda: path.write_text(f"in a group: {dist.is_initialized()}"))
    if args.exit_code:
        sys.exit(args.exit_code)


@pytest.mark.slow
@pytest.mark.parametrize("exit_code", [0, STOPPED_EXIT_CODE])
def test_processes_leave_their_group_before_they_end(tmp_path, exit_code):
    arguments = Namespace(
        num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", exit_code=exit_code, folder=tmp_path
    )
    with pytest.raises(SystemExit, match=str(exit_code)) if exit_code else contextlib.nullcontext():
        launch(note_group_at_the_end, arguments, device="cpu")
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in range(2)] == ["in a group: False"] * 2


def test_more_processes_than_gpus_are_refused_at_once(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus is 8, but torch sees 1 here"):
        launch(print, Namespace(num_gpus=8, num_machines=1))
