"""Several processes with a gloo group, forked from the test, so that they start in no time."""

import multiprocessing
import pickle
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from detectron2.utils import comm


def run_processes(world_size: int, function: Callable, *args) -> list:
    """Call ``function(*args)`` in processes of one group.

    Args:
        world_size: number of processes.
        function: its result must be picklable; Detectron2's ``comm`` works in it.

    Returns:
        the results by rank; the text of the traceback in an ``AssertionError`` if one fails.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe() for _ in range(world_size)]
    processes = [
        context.Process(target=_work, args=(rank, world_size, port, pipes[rank][1], function, args))
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


def _work(rank: int, world_size: int, port: int, pipe, function: Callable, args: tuple) -> None:
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=30),
        )
        comm.create_local_process_group(world_size)
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))  # by value: the process ends
    pipe.close()
