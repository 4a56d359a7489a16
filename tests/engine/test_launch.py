"""Processes of Detectron2's launcher end without an accident."""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from detectron2.utils import comm

from updetr_d2.engine.launch import check_dist_url, launch
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


SLEEPING = """
import sys, time
from argparse import Namespace
from pathlib import Path
import os
from updetr_d2.engine.launch import launch

def main(args):
    (Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(300)

launch(main, Namespace(num_gpus=1, num_machines=1))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has died")
def test_ranks_end_when_the_agent_of_torchrun_is_killed(tmp_path):
    """Kill -9 leaves it no time to end them; they would train on without anyone who watches them."""
    script = tmp_path / "sleeping.py"
    script.write_text(SLEEPING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    agent = psutil.Popen(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    ranks = []
    end = time.monotonic() + 600  # a busy machine imports PyTorch slowly
    try:
        for rank in ("0", "1"):
            while not (tmp_path / rank).exists() or not (tmp_path / rank).read_text():
                assert agent.is_running() and time.monotonic() < end
                time.sleep(0.1)
            ranks.append(psutil.Process(int((tmp_path / rank).read_text())))
        agent.kill()
        agent.wait(10)
        _, alive = psutil.wait_procs(ranks, timeout=20)
        assert not alive
    finally:
        for process in (agent, *ranks):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("tcp://127.0.0.1", r"must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:port", r"must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:70000", r"port from 1 to 65535"),
        ("tcp://127.0.0.1:0", r"port from 1 to 65535"),
        ("tcp://:4321", r"must be tcp://HOST:PORT"),
        ("127.0.0.1:4321", r"must be tcp://HOST:PORT"),
        ("http://127.0.0.1:4321", r"must be tcp://HOST:PORT"),
        ("", r"must be tcp://HOST:PORT"),
        ("tcp://no.such.host.invalid:4321", "host is not known here"),
    ],
)
def test_addresses_where_processes_cannot_meet_are_refused(url, said):
    arguments = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url=url)
    with pytest.raises(ValueError, match=f"--dist-url is '{url}'.*{said}"):
        launch(print, arguments)


def test_a_port_in_use_is_named():
    """Two runs on one machine have Detectron2's default port in common."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(
            ValueError, match=f"--dist-url is '{url}', but port .* is in use.*--dist-url auto"
        ):
            check_dist_url(url, num_machines=1, machine_rank=0)
        check_dist_url(url, num_machines=2, machine_rank=1)  # the first machine listens
    check_dist_url(url, num_machines=1, machine_rank=0)


def test_machines_are_numbered_from_0():
    for num_machines, machine_rank in ((2, 2), (1, -1), (0, 0)):
        with pytest.raises(ValueError, match="--machine-rank"):
            check_dist_url("tcp://localhost:4321", num_machines=num_machines, machine_rank=machine_rank)
    with pytest.raises(ValueError, match="--dist-url auto is for one machine"):
        check_dist_url("auto", num_machines=2, machine_rank=0)
    check_dist_url("auto", num_machines=1, machine_rank=0)
