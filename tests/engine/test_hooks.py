"""Checkpoints hold every process's place in the data stream, and a full disk does not end a long run."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage, EventWriter
from torch import nn

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.checkpoint.run_files import SaveError
from updetr_d2.data.loading.samples import SkippedFiles
from updetr_d2.engine import hooks
from updetr_d2.engine.hooks import (
    CheckpointHook,
    DataTimeAdvice,
    MetricsWriter,
    ReportHook,
    SkippedFilesReport,
)


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


def run_hook(hook, first, stop, max_iter=10):
    hook.before_train()
    loader = SimpleNamespace(state_dict=lambda: state(8))
    for iteration in range(first, stop):
        settle = lambda: None  # noqa: E731
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=max_iter, data_loader=loader, settle=settle)
        hook.after_step()


def checkpoint_hook(folder, period=2, keep=0):
    return CheckpointHook(UPDETRCheckpointer(nn.Linear(2, 2), str(folder)), period, keep=keep)


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.pth*"))


def test_checkpoints_come_with_the_period_and_at_the_end(tmp_path):
    run_hook(checkpoint_hook(tmp_path, period=4), 0, 10)
    assert checkpoints(tmp_path) == ["model_0000003.pth", "model_0000007.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    saved = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    assert saved["iteration"] == 3
    assert saved["data_loader"] == [state(8)]


def test_the_number_of_checkpoints_is_limited_over_resumes(tmp_path):
    (tmp_path / "model_0000001.pth.tmp").write_text("of a killed process")
    run_hook(checkpoint_hook(tmp_path, keep=2), 0, 6)
    assert checkpoints(tmp_path) == ["model_0000003.pth", "model_0000005.pth"]
    run_hook(checkpoint_hook(tmp_path, keep=2), 6, 10)
    assert checkpoints(tmp_path) == ["model_0000007.pth", "model_0000009.pth", "model_final.pth"]


def fail_to_write(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)


def test_a_full_disk_does_not_end_the_run_and_the_next_checkpoint_is_tried(tmp_path, monkeypatch, caplog):
    hook = checkpoint_hook(tmp_path, keep=1)
    run_hook(hook, 0, 2)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        fail_to_write(patch)
        run_hook(hook, 2, 4)
    assert "model_0000003.pth was not written (No space left on device)" in caplog.text
    assert "Training goes on, and the next checkpoint is tried when it is due." in caplog.text
    assert checkpoints(tmp_path) == ["model_0000001.pth"]
    run_hook(hook, 4, 6)
    assert checkpoints(tmp_path) == ["model_0000005.pth"]


def test_the_final_checkpoint_must_be_written(tmp_path, monkeypatch):
    fail_to_write(monkeypatch)
    with pytest.raises(SaveError, match=r"model_final\.pth was not written"):
        run_hook(checkpoint_hook(tmp_path, period=100), 8, 10)


def test_a_checkpoint_is_not_written_twice(tmp_path, monkeypatch):
    hook = checkpoint_hook(tmp_path)
    run_hook(hook, 0, 2)
    monkeypatch.setattr(hook.checkpointer, "save", lambda *args, **kwargs: pytest.fail("written again"))
    hook.save_now()


def test_metrics_that_cannot_be_written_do_not_end_the_run(caplog):
    class Full(EventWriter):
        def write(self):
            raise OSError(28, "No space left on device")

    hook = MetricsWriter(lambda: [Full()], period=1)
    hook.trainer = SimpleNamespace(iter=3, max_iter=10)
    hook.before_train()
    with caplog.at_level(logging.ERROR):
        hook.after_step()
        hook.after_train()
    assert "Metrics of iteration 3 were not written" in caplog.text


@pytest.mark.parametrize(("data_time", "told"), [(0.2, True), (0.05, False)])
def test_waiting_for_data_is_told_with_the_key_to_change(data_time, told, caplog):
    hook = DataTimeAdvice(num_workers=3, period=100)
    with EventStorage() as storage:
        for iteration in range(1, 251):
            storage.put_scalars(time=1.0, data_time=data_time, cur_iter=iteration)
            hook.trainer = SimpleNamespace(iter=iteration, storage=storage)
            hook.after_step()
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == (2 if told else 0)
    if told:
        assert warnings[0].startswith(
            "20 % of the time goes into waiting for data (data_time 0.200 s of 1.000 s)"
        )
        assert "raise DATALOADER.NUM_WORKERS (3)" in warnings[0]


def run_report_hook(monkeypatch, *, eval_period, max_iter, stopped_after=None):
    """The number of iterations done when the page was written."""
    written = []
    hook = ReportHook("run", eval_period=eval_period, period=20)
    hook.trainer = SimpleNamespace(iter=0, max_iter=max_iter, stop_signals=SimpleNamespace(agreed=0))
    monkeypatch.setattr(hooks, "write_report", lambda folder: written.append(hook.trainer.iter + 1))
    for hook.trainer.iter in range(stopped_after or max_iter):
        hook.after_step()
    hook.trainer.stop_signals.agreed = 15 if stopped_after else 0
    hook.after_train()
    return written


def test_the_page_is_written_once_the_metrics_of_an_evaluation_are(monkeypatch):
    assert run_report_hook(monkeypatch, eval_period=30, max_iter=100) == [40, 60, 100]
    assert run_report_hook(monkeypatch, eval_period=0, max_iter=50) == [50]
    assert run_report_hook(monkeypatch, eval_period=20, max_iter=70) == [20, 40, 60, 70]


def test_a_stopped_run_does_not_wait_for_its_page(monkeypatch):
    assert run_report_hook(monkeypatch, eval_period=30, max_iter=100, stopped_after=35) == []


def test_a_page_that_cannot_be_written_ends_nothing(monkeypatch, caplog, tmp_path):
    hooks.write_report(str(tmp_path / "nowhere"))
    assert "report.html was not written" in caplog.text
    monkeypatch.setattr(hooks.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(hooks, "write_page", lambda *_, **__: pytest.fail("writes on another process"))
    hooks.write_report(str(tmp_path))
