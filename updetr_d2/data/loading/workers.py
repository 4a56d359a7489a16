"""Loader processes: how samples come from them, and what to change when the system kills one."""

import math
import re
import resource
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Listener
from types import FrameType
from typing import Any

import cv2
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from updetr_d2.data.loading.handover import PackedSamples
from updetr_d2.data.loading.samples import StreamSample

# Open files that are enough for any batch; the usual limit of 1024 is not.
_OPEN_FILES = 65536
_EXPLANATION = "A loader worker was ended by the system"
_ADVICE = {
    "Killed": (
        "most likely because the machine ran out of memory: lower DATALOADER.NUM_WORKERS or, if the photos have "
        "many megapixels, store them smaller (a worker holds one at full size)"
    ),
    "Bus error": (
        "because the shared memory (/dev/shm) is full: give the container more (docker run --shm-size 8g) or "
        "lower DATALOADER.NUM_WORKERS, SOLVER.IMS_PER_BATCH or INPUT.MAX_SIZE_TRAIN"
    ),
}
_OTHER_ADVICE = "set DATALOADER.NUM_WORKERS 0 to see in which file and line it happens"
# Seconds within which the system tells of a worker's death.
_SIGNAL_DELAY = 2.0
# Attribute of our handler of SIGCHLD, which tells it from PyTorch's.
_MARK = "explains"


class SampleLoader:
    """Single samples in the order of the sampler, from loader processes or this one.

    Batches are made in the main process, where the sizes of the images are known.

    Args:
        dataset: of :class:`StreamSample`.
        sampler: iterable of what the data set is indexed by.
        num_workers: loader processes; 0 loads in this one.
        prefetch: samples to prepare ahead, all workers together.
        pin_memory: put tensors into page-locked memory, from which copies to a GPU run beside its work.
        chunk_size: samples that a worker hands over together (:mod:`~updetr_d2.data.loading.handover`).

    Raises:
        OSError: if workers could not hand samples over, for want of a temporary folder.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Iterable,
        *,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
        chunk_size: int = 1,
    ) -> None:
        workers: dict[str, Any] = {}
        self._packed = num_workers > 0
        if num_workers > 0:
            _allow_many_open_files()
            check_sockets()
            dataset = PackedSamples(dataset)
            # The types of ``BatchSampler`` want a Sampler or an Iterable of int.
            sampler = BatchSampler(sampler, chunk_size, drop_last=False)
            prefetch = math.ceil(prefetch / chunk_size)
            workers = {
                "prefetch_factor": max(2, math.ceil(prefetch / num_workers)),
                "worker_init_fn": _start_worker,
                # Detectron2's launch would make it "spawn": slow to start, with a copy of the data set for each.
                "multiprocessing_context": "fork",
            }
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            # The default one would convert whatever looks like an array. Without a batch size it gets one sample.
            collate_fn=_identity,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # leaves the global generator, and so the model's numbers, alone
            **workers,
        )

    def __iter__(self) -> Iterator[StreamSample]:
        """Give the samples.

        Raises:
            RuntimeError: if a worker dies; it says what to change.
        """
        samples = iter(self._loader)
        if self._loader.num_workers > 0:
            _explain_deaths_at_any_time()
        while True:
            try:
                sample = next(samples)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                if isinstance(error, RuntimeError):
                    explanation: Exception = explained(error)
                else:
                    explanation = _explain_lost_connection(error)
                raise explanation from (None if explanation is not error else error.__cause__)
            if self._packed:
                yield from sample.unpack()
            else:
                yield sample


def explained(error: RuntimeError) -> RuntimeError:
    """Turn PyTorch's message about a dead worker into one that says what to change; others stay as they are."""
    if not re.match(r"DataLoader worker \(pid", str(error)):
        return error
    # While waiting for a sample, PyTorch wraps the message of the signal handler, ours or its own, into another.
    messages = [str(each) for each in (error, error.__cause__) if each is not None]
    for message in messages:
        if message.startswith(_EXPLANATION):
            return RuntimeError(message)
        found = re.search(r"killed by signal: ([^.]+)\.", message)
        if found:
            return RuntimeError(f"{_EXPLANATION} ({found[1]}), {_ADVICE.get(found[1], _OTHER_ADVICE)}.")
    return RuntimeError(f"A loader worker ended unexpectedly ({error}): {_OTHER_ADVICE}.")


def _explain_lost_connection(error: OSError | EOFError) -> Exception:
    """Say why a worker was gone while it handed a sample over; an error of the data set's own stays as it is."""
    if "in DataLoader worker process" in str(error):
        return error
    try:
        time.sleep(_SIGNAL_DELAY)
    except RuntimeError as death:  # from the signal handler
        return death
    return RuntimeError(f"A loader worker ended unexpectedly ({error}): {_OTHER_ADVICE}.")


def _explain_deaths_at_any_time() -> None:
    """Let the signal handler that PyTorch sets up, which raises wherever the main thread is, explain as well."""
    handler = signal.getsignal(signal.SIGCHLD)
    if (
        threading.current_thread() is not threading.main_thread()
        or not callable(handler)
        or getattr(handler, _MARK, False)
    ):
        return

    def explain(signum: int, frame: FrameType | None) -> None:
        try:
            handler(signum, frame)
        except RuntimeError as error:
            raise explained(error) from None

    setattr(explain, _MARK, True)
    signal.signal(signal.SIGCHLD, explain)


def _identity(sample: Any) -> Any:
    return sample


def _start_worker(_worker_id: int) -> None:
    """One thread a worker, as the workers are the parallelism; the training process's handler of SIGTERM."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    inherited = signal.getsignal(signal.SIGTERM)
    if callable(inherited):  # PyTorch has put its own in the place of the one that came with the fork
        signal.signal(signal.SIGTERM, inherited)


def check_sockets() -> None:
    """Open a socket as workers do to hand tensors over, in a folder that they inherit.

    A worker that could not would lose its samples without an error, and the training wait for them forever.

    Raises:
        OSError: if the temporary folder is full, or its path too long for a socket.
    """
    try:
        Listener(family="AF_UNIX").close()
    except OSError as error:
        raise OSError(
            f"Loader workers need a temporary folder for their sockets, and none could be opened there ({error}): "
            "make room in it, or set TMPDIR to another one with a short path."
        ) from error


def _allow_many_open_files() -> None:
    """Raise the soft limit of open files: every tensor on its way from a worker holds one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
