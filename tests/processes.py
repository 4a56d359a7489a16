"""Processes with a gloo group, forked from a server that has imported the project, so that they start soon.

A fork of the test's own process could not compute gradients once that has done so where there is a GPU, or a
pretended one: PyTorch's engine has threads then.
"""

import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta

import cloudpickle
import torch
import torch.distributed as dist
from detectron2.utils import comm

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["updetr_d2.tasks", "cv2", "pytest"])


def run_processes(world_size: int, function: Callable, *args) -> list:
    """Call ``function(*args)`` in processes of one group.

    Args:
        world_size: number of processes.
        function: of the test's module. All modules are imported afresh, so that it does not see what was
            registered or patched; the environment is that of the test. Detectron2's ``comm`` works in it.

    Returns:
        the results by rank; the text of the traceback in an ``AssertionError`` if one fails.
    """
    module = sys.modules[function.__module__]
    call = cloudpickle.dumps((function, args))
    arguments = (module.__name__, module.__file__, call, dict(os.environ))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [_CONTEXT.Pipe() for _ in range(world_size)]
    processes = [
        _CONTEXT.Process(target=_work, args=(rank, world_size, port, pipes[rank][1], *arguments))
        for rank in range(world_size)
    ]
    for process, (_, theirs) in zip(processes, pipes):
        process.start()
        theirs.close()
    try:
        answers = [
            pickle.loads(ours.recv_bytes()) if ours.poll(60) else (False, "no answer") for ours, _ in pipes
        ]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    failures = [f"process {rank}: {answer}" for rank, (ok, answer) in enumerate(answers) if not ok]
    assert not failures, "\n".join(failures)
    return [answer for _, answer in answers]


def _work(
    rank: int,
    world_size: int,
    port: int,
    pipe,
    module: str,
    file: str,
    call: bytes,
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # as conftest.py does
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=30),
        )
        comm.create_local_process_group(world_size)
        _import_test(module, file)
        function, args = pickle.loads(call)
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(cloudpickle.dumps(answer))  # by value: the process ends
    pipe.close()


def _import_test(name: str, file: str) -> None:
    """As pytest imports it: under a name that Python itself need not find."""
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
