"""Start a main function on all processes, whichever launcher the user prefers."""

import contextlib
import ctypes
import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from updetr_d2.engine.preemption import STOP_SIGNALS, STOPPED_EXIT_CODE

logger = logging.getLogger(__name__)

# Of a start that was refused with a sentence.
REFUSED_EXIT_CODE = 1
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# How long processes wait for each other: the others for the main one, while it computes the metrics of COCO.
_TIMEOUT = timedelta(hours=3)


class LaunchError(ValueError):
    """Processes that cannot be started as asked; the message is one sentence for the user."""


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
        LaunchError: if there are fewer GPUs than asked for, or the processes could not find each other.
        SystemExit: if the processes have stopped after a signal, with their exit code.
    """
    use_gpu = device.startswith("cuda") and torch.cuda.is_available()
    num_gpus = torch.cuda.device_count()
    if use_gpu and args.num_gpus > num_gpus:
        raise LaunchError(f"--num-gpus is {args.num_gpus}, but torch sees {num_gpus} here.")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if args.num_gpus * args.num_machines > 1:
            check_dist_url(args.dist_url, num_machines=args.num_machines, machine_rank=args.machine_rank)
            with contextlib.nullcontext() if use_gpu else _hidden_gpus():
                _launch_processes(main, args)
            return None
        return main(args)
    _stop_with_parent()
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    return _run_in_process_group(main, args)


def check_dist_url(url: str, *, num_machines: int, machine_rank: int) -> None:
    """Check where the processes are to meet, before they are started.

    Args:
        url: of ``--dist-url``.
        num_machines, machine_rank: of the command line.

    Raises:
        LaunchError: naming the argument, if the processes cannot meet there.
    """
    if num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise LaunchError(
            f"--machine-rank is {machine_rank} of --num-machines {num_machines}: machines are numbered from 0."
        )
    if url == "auto":
        if num_machines > 1:
            raise LaunchError("--dist-url auto is for one machine; name tcp://HOST:PORT of machine 0.")
        return
    parts = urlsplit(url)
    if parts.scheme == "file":
        return
    try:
        port = parts.port
    except ValueError:  # no number, or too large
        port = None
    if parts.scheme != "tcp" or not parts.hostname or not port:
        raise LaunchError(
            f"--dist-url is '{url}'; it must be tcp://HOST:PORT with a port from 1 to 65535, or auto on one "
            "machine."
        )
    try:
        socket.getaddrinfo(parts.hostname, port)
    except OSError as error:
        raise LaunchError(
            f"--dist-url is '{url}', whose host is not known here ({error.strerror})."
        ) from error
    if machine_rank == 0:
        _check_port(url, port)


def _check_port(url: str, port: int) -> None:
    """Raise LaunchError if this machine cannot listen on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise LaunchError(
                f"--dist-url is '{url}', but port {port} of this machine {reason}, perhaps by another run: choose "
                "another one, or --dist-url auto on one machine."
            ) from error


def _stop_with_parent() -> None:
    """Get SIGTERM when the parent dies, ``torchrun``'s agent, which cannot tell when it is killed with SIGKILL.

    On Linux; the processes of Detectron2's ``launch`` do so by themselves.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


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
        if error.exit_code in (STOPPED_EXIT_CODE, REFUSED_EXIT_CODE):  # it has said why
            sys.exit(error.exit_code)
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
