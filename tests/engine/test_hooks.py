"""Checkpoints hold every process's place in the data stream."""

import logging
from types import SimpleNamespace

import pytest

from updetr_d2.data.stream import SkippedFiles
from updetr_d2.engine import hooks
from updetr_d2.engine.hooks import CheckpointHook, SkippedFilesReport


class Loader:
    state = None

    def load_state_dict(self, state):
        self.state = state


def state(position, pending=()):
    return {"seed": 1, "num_images": 9, "next_position": position, "pending": list(pending)}


def test_each_process_gets_its_own_state_back(monkeypatch):
    monkeypatch.setattr(hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(hooks.comm, "get_rank", lambda: 1)
    loader = Loader()
    CheckpointHook.restore_data_loader(loader, {"data_loader": [state(8, [2]), state(9, [3])]})
    assert loader.state == state(9, [3])


def test_another_number_of_processes_starts_at_the_furthest_position_and_warns(caplog):
    loader = Loader()
    with caplog.at_level(logging.WARNING):
        CheckpointHook.restore_data_loader(loader, {"data_loader": [state(8, [2]), state(11, [3])]})
    assert loader.state == state(11)
    assert "written by 2 processes and 1 continue" in caplog.text


def test_a_checkpoint_of_something_else_leaves_the_loader_alone():
    loader = Loader()
    CheckpointHook.restore_data_loader(loader, {"iteration": 3})
    assert loader.state is None


def skipped(*names):
    files = SkippedFiles()
    for name in names:
        files.add(name, "is empty")
    return files


def report(iteration, caplog):
    hook = SkippedFilesReport()
    loader = SimpleNamespace(skipped_files=skipped("a.jpg", "a.jpg"))
    hook.trainer = SimpleNamespace(data_loader=loader, iter=iteration, max_iter=10)
    with caplog.at_level(logging.INFO):
        hook.after_train()
    return caplog.text


def test_the_end_of_a_run_reports_the_skipped_files_of_all_processes(monkeypatch, caplog):
    monkeypatch.setattr(hooks.comm, "gather", lambda own: [own, skipped("a.jpg", "b.jpg")])
    text = report(10, caplog)
    assert "2 files, 4 times" in text
    assert "b.jpg: is empty" in text


def test_an_aborted_run_does_not_wait_for_other_processes(monkeypatch, caplog):
    monkeypatch.setattr(hooks.comm, "gather", lambda own: pytest.fail("waits for the others"))
    assert "1 files, 2 times" in report(3, caplog)
