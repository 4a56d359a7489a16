"""The first signal is noted, a second one ends the process, loader workers go on working."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from updetr_d2.engine import preemption
from updetr_d2.engine.preemption import PreemptionHook, StopSignals


def test_the_first_signal_is_noted_and_handlers_come_back(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert "SIGTERM: saving a checkpoint after this step" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)  # the same request once more, passed on by a launcher
        assert stop.received == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def forked(work):
    """Run ``work`` in a forked child, as loader workers are; returns the child's id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_a_second_signal_ends_the_process(monkeypatch):
    monkeypatch.setattr(preemption, "_SAME_REQUEST", 0.05)

    def work():
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

    _, status = os.waitpid(forked(work), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


def load_data() -> None:
    """What a loader worker is to PyTorch."""
    torch.utils.data._utils.worker._worker_info = SimpleNamespace(id=0)
    time.sleep(60)


def test_workers_forked_inside_ignore_signals_until_training_ends():
    with StopSignals() as stop:
        worker = forked(load_data)
        time.sleep(0.1)
        for _ in range(3):
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
            time.sleep(0.05)
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)  # alive
        assert stop.received == 0
    # Now the main process must be able to end it, without an alarm about a worker that was killed.
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0) == (worker, 0)


def test_other_processes_forked_inside_can_be_ended():
    """``multiprocessing.Pool`` ends its processes by SIGTERM and waits until they are gone."""
    with StopSignals() as stop:
        child = forked(lambda: time.sleep(60))
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        assert stop.received == 0


def hook(stop, iteration, saved):
    made = PreemptionHook(stop, SimpleNamespace(save_now=lambda: saved.append(iteration)))
    made.trainer = SimpleNamespace(iter=iteration, max_iter=10)
    return made


def test_an_agreed_signal_saves_and_exits_with_the_documented_code():
    stop, saved = StopSignals(), []
    hook(stop, 3, saved).after_step()
    stop.received = signal.SIGTERM  # not yet known to the others
    hook(stop, 4, saved).after_step()
    assert saved == []
    stop.agreed = signal.SIGTERM
    with pytest.raises(SystemExit) as exit_info:
        hook(stop, 5, saved).after_step()
    assert exit_info.value.code == preemption.STOPPED_EXIT_CODE == 75
    assert saved == [5]


def test_after_the_last_step_there_is_nothing_to_save_and_signals_act_as_before():
    before = signal.getsignal(signal.SIGTERM)
    saved = []
    with StopSignals() as stop:
        stop.agreed = signal.SIGTERM
        hook(stop, 9, saved).after_step()
        assert signal.getsignal(signal.SIGTERM) == before
    assert saved == []
