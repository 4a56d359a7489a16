"""A loader process that the system ends gives one sentence about what to change, wherever training is then."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from updetr_d2.data.loading import workers
from updetr_d2.data.loading.samples import StreamSample
from updetr_d2.data.loading.workers import SampleLoader, explained


class DeadlyDataset(Dataset):
    """Sample 3 ends its worker by a signal, after a delay (s)."""

    def __init__(self, number: int, delay: float = 0) -> None:
        self.number = number
        self.delay = delay

    def __getitem__(self, index: int) -> StreamSample:
        if index == 3:
            time.sleep(self.delay)
            os.kill(os.getpid(), self.number)
            time.sleep(10)
        return StreamSample(index, {"image": torch.zeros(3, 4, 4)}, [])


def loader(dataset: Dataset | list[StreamSample]) -> SampleLoader:
    return SampleLoader(dataset, range(50), num_workers=2, prefetch=4, pin_memory=False)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (signal.SIGKILL, r"\(Killed\).*out of memory: lower DATALOADER\.NUM_WORKERS"),
        (signal.SIGBUS, r"\(Bus error\).*shared memory.*--shm-size"),
        (signal.SIGSEGV, r"\(Segmentation fault\), set DATALOADER\.NUM_WORKERS 0"),
    ],
)
def test_waiting_for_a_worker_that_is_killed(number, advice):
    seen = []
    with pytest.raises(RuntimeError, match=f"^A loader worker was ended by the system {advice}"):
        for sample in loader(DeadlyDataset(number)):
            seen.append(sample.position)
    assert seen == list(range(len(seen)))


# Their workers live: one that died later would be noticed in the next test.
SAMPLES = [StreamSample(position, {}, []) for position in range(50)]


def lose_connection(samples: SampleLoader, monkeypatch, *, killed: bool) -> None:
    """The main process reads from a worker that has just gone, and hears of its death, if so, a moment later."""

    def broken(self):
        if killed:
            threading.Timer(0.2, self._workers[0].kill).start()
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    next(iter(samples))


def test_a_worker_that_is_killed_while_it_hands_a_sample_over(monkeypatch):
    with pytest.raises(RuntimeError, match=r"^A loader worker was ended by the system \(Killed\)"):
        lose_connection(loader(SAMPLES), monkeypatch, killed=True)


def test_a_lost_connection_without_a_reason(monkeypatch):
    monkeypatch.setattr(workers, "_SIGNAL_DELAY", 0.1)
    with pytest.raises(
        RuntimeError, match=r"^A loader worker ended unexpectedly \(.*reset by peer\): set DATALO"
    ):
        lose_connection(loader(SAMPLES), monkeypatch, killed=False)


class EndlessFile(Dataset):
    def __getitem__(self, index):
        raise EOFError("the file ends early")


def test_an_end_of_file_in_the_data_set_stays_what_it_is():
    with pytest.raises(EOFError, match="the file ends early"):
        next(iter(loader(EndlessFile())))


def test_a_worker_that_is_killed_while_the_model_computes():
    samples = iter(loader(DeadlyDataset(signal.SIGKILL, delay=0.5)))
    next(samples)
    with pytest.raises(RuntimeError, match=r"^A loader worker was ended by the system"):
        for _ in range(100):
            time.sleep(0.1)


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("CUDA out of memory"), RuntimeError("DataLoader timed out")):
        assert explained(error) is error
    unexpected = explained(RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"))
    assert "A loader worker ended unexpectedly" in str(unexpected)
    assert "DATALOADER.NUM_WORKERS 0" in str(unexpected)


class Twice(Dataset):
    def __getitem__(self, index: int) -> StreamSample:
        if index == 2:
            raise ZeroDivisionError("in the mapper")
        return StreamSample(index, None, [])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_mapper_come_through(num_workers):
    samples = SampleLoader(Twice(), range(5), num_workers=num_workers, prefetch=2, pin_memory=False)
    with pytest.raises(ZeroDivisionError, match="in the mapper"):
        list(samples)
    assert [
        each.position
        for each in SampleLoader(Twice(), range(2), num_workers=num_workers, prefetch=2, pin_memory=False)
    ] == [0, 1]


def last_line_of_process(code: str, **environment: str) -> str:
    """Run a whole process that imports this module, with a real traceback at its end; gives the last line."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", f"import signal, time, test_workers\n{code}"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_run_ends_with_the_sentence_and_without_hanging():
    last = last_line_of_process(
        "for _ in test_workers.loader(test_workers.DeadlyDataset(signal.SIGKILL)): time.sleep(0.05)"
    )
    assert last.startswith(
        "RuntimeError: A loader worker was ended by the system (Killed), most likely because"
    )


@pytest.mark.slow
def test_a_temporary_folder_in_which_no_socket_can_be_made_is_told_before_the_training_waits(tmp_path):
    folder = tmp_path / ("long" * 30)  # the path of a socket has at most 107 characters
    folder.mkdir()
    last = last_line_of_process("next(iter(test_workers.loader(test_workers.SAMPLES)))", TMPDIR=str(folder))
    assert last.startswith("OSError: Loader workers need a temporary folder for their sockets")
    assert "(AF_UNIX path too long)" in last
    assert "set TMPDIR" in last


def test_workers_share_the_memory_of_a_process_that_a_launcher_has_spawned():
    """There, new processes are spawned unless one says otherwise, and each would need a copy of the data set."""

    class CannotBePickled(Dataset):
        def __getitem__(self, index: int) -> StreamSample:
            return StreamSample(index, {}, [])

    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert [sample.position for sample in loader(CannotBePickled())] == list(range(50))
    finally:
        multiprocessing.set_start_method(before, force=True)
