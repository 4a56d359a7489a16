"""Start a main function on all processes, whichever launcher the user prefers."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from updetr_d2.engine.preemption import STOP_SIGNALS, STOPPED_EXIT_CODE

logger = logging.getLogger(__name__)


_VISIBLE = "CUDA_VISIBLE_DEVICES"
# How long processes wait for each other: the others for the main one, while it computes the metrics of COCO.
_TIMEOUT = timedelta(hours=3)


def launch(main: Callable[[Namespace], object], args: Namespace, *, device: str = "cuda") -> object:
    """Run ``main(args)`` in every process: under ``torchrun`` in this one, else through Detectron2's ``launch``.

    Without GPUs, or if they are not used, ``--num-gpus`` is the number of CPU processes on the machine (gloo).

    Args:
        main: importable function of the parsed arguments.
        args: Detectron2's default arguments.
        device: ``MODEL.DEVICE`` of the run.

    Returns:
        what ``main`` returned, where it ran in this process.

    Raises:
        ValueError: if there are fewer GPUs than asked for.
        SystemExit: if the processes have stopped after a signal, with their exit code.
    """
    use_gpu = device.startswith("cuda") and torch.cuda.is_available()
    num_gpus = torch.cuda.device_count()
    if use_gpu and args.num_gpus > num_gpus:
        raise ValueError(f"--num-gpus is {args.num_gpus}, but torch sees {num_gpus} here.")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if args.num_gpus * args.num_machines > 1:
            with contextlib.nullcontext() if use_gpu else _hidden_gpus():
                _launch_processes(main, args)
            return None
        return main(args)
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    return _run_in_process_group(main, args)


def _run_in_process_group(main: Callable[[Namespace], object], args: Namespace) -> object:
    """Run ``main(args)`` and leave the process group, whose threads could abort a process that ends in it.

    After a failure the group stays: leaving it could wait for the others, who wait for this process.
    """
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // comm.get_local_size()))
    try:
        result = main(args)
    except SystemExit:  # all processes stop together
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
    return result


def _launch_processes(main: Callable[[Namespace], object], args: Namespace) -> None:
    try:
        with _forwarded_signals():
            detectron2_launch(
                _run_in_process_group,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
                timeout=_TIMEOUT,
            )
    except ProcessExitedException as error:
        if error.exit_code == STOPPED_EXIT_CODE:
            sys.exit(STOPPED_EXIT_CODE)
        if error.exit_code == -signal.SIGKILL:
            logger.error(
                "Process %d was killed, probably because memory ran out: lower DATALOADER.NUM_WORKERS or "
                "SOLVER.IMS_PER_BATCH. --resume goes on from the last checkpoint.",
                error.error_index,
            )
        raise


@contextlib.contextmanager
def _hidden_gpus() -> Iterator[None]:
    """Keep the GPUs from processes started inside: Detectron2 takes NCCL, and one GPU each, where it sees any."""
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = ""
    try:
        yield
    finally:
        os.environ.pop(_VISIBLE)
        if before is not None:
            os.environ[_VISIBLE] = before


@contextlib.contextmanager
def _forwarded_signals() -> Iterator[None]:
    """Pass stop signals on to the processes and wait for them: if this one died, a container would end all."""

    def forward(number: int, frame: FrameType | None) -> None:
        processes = multiprocessing.active_children()
        for process in processes:
            if process.pid is not None:
                os.kill(process.pid, number)
        if not processes:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
