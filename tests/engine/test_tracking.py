"""Metrics for services: all of them once, resumed runs under one id, and no fault of a service reaches the run."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage
from helpers import tiny_cfg

from updetr_d2.config import checks
from updetr_d2.engine import tracking
from updetr_d2.engine.trackers import TRACKERS, metric_name
from updetr_d2.engine.tracking import Tracker, TrackingWriter, read_run_id
from updetr_d2.engine.writers import build_writers


class Service(Tracker):
    name = "service"

    def __init__(self, fail=()):
        self.fail, self.got, self.started_with, self.finished = fail, [], [], False

    def start(self, run_id):
        self.started_with.append(run_id)
        if "start" in self.fail:
            raise ConnectionError("no network")
        return run_id or "new"

    def log(self, iteration, scalars):
        if iteration in self.fail:
            raise TimeoutError(f"iteration {iteration}\nis lost")
        self.got.append((iteration, dict(scalars)))

    def finish(self):
        self.finished = True


def train(service, folder, *, first=0, iterations=6, resumed=False):
    """A loss in every iteration, a result in the fourth; written after every second one."""
    writer = TrackingWriter(service, str(folder), resumed=lambda: resumed)
    with EventStorage(first) as storage:
        for storage.iter in range(first, first + iterations):
            storage.put_scalar("total_loss", 10.0 - storage.iter, smoothing_hint=False)
            if storage.iter == 3:
                storage.put_scalars(**{"bbox/AP": 50.0, "bbox/APl": float("nan")}, smoothing_hint=False)
            if storage.iter % 2:
                writer.write()
        writer.write()
        writer.close()


def test_every_metric_arrives_once(tmp_path):
    service = Service()
    train(service, tmp_path)
    loss = [(1, {"total_loss": 9.0}), (3, {"total_loss": 7.0, "bbox/AP": 50.0}), (5, {"total_loss": 5.0})]
    assert service.got == loss and service.finished


def test_a_resumed_training_goes_on_with_its_run(tmp_path):
    train(Service(), tmp_path)
    again = Service()
    train(again, tmp_path, first=4, resumed=True)
    assert again.started_with == ["new"] and again.got[0] == (5, {"total_loss": 5.0})
    anew = Service()
    train(anew, tmp_path)
    assert anew.started_with == [None]
    (tmp_path / tracking.RUNS_FILE).write_text("[broken")
    assert read_run_id(str(tmp_path), "service") is None


def test_services_do_not_forget_each_other(tmp_path):
    for name in ("a", "b"):
        tracking.write_run_id(str(tmp_path), name, f"id of {name}")
    assert read_run_id(str(tmp_path), "a") == "id of a" and read_run_id(str(tmp_path), "b") == "id of b"


@pytest.mark.parametrize(("fail", "arrived"), [(("start",), []), ((3,), [1, 5]), ((1, 3, 5), [])])
def test_a_fault_is_said_once_and_ends_nothing(tmp_path, caplog, fail, arrived):
    service = Service(fail)
    with caplog.at_level(logging.WARNING):
        train(service, tmp_path)
    assert [iteration for iteration, _ in service.got] == arrived
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("TRACKING.WRITERS service: ") and "\n" not in message
    assert "Training goes on" in message


def test_a_service_that_hangs_costs_no_time(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "_SECONDS_AT_END", 0.2)
    monkeypatch.setattr(tracking, "_LONGEST_QUEUE", 2)
    released = threading.Event()
    service = Service()
    service.log = lambda *_: released.wait()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        train(service, tmp_path, iterations=40)
    assert time.monotonic() - started < 5
    released.set()
    assert "metrics are left out" in caplog.text and "did not take the last metrics" in caplog.text


def test_a_training_that_writes_nothing_starts_nothing(tmp_path):
    service = Service()
    TrackingWriter(service, str(tmp_path), resumed=lambda: False).close()
    assert not service.started_with


def test_what_is_not_installed_or_unknown_is_said_at_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"TRACKING\.WRITERS names wandb, but the Python package 'wandb' is not"
    ):
        checks.check_common_config(tiny_cfg("DETR", "TRACKING.WRITERS", ("wandb",)))
    with pytest.raises(ValueError, match=r"TRACKING\.WRITERS is 'comet'; use one of wandb, mlflow"):
        checks.check_common_config(tiny_cfg("DETR", "TRACKING.WRITERS", ("comet",)))
    with pytest.raises(ValueError, match=r"TRACKING\.PROJECT is empty"):
        checks.check_common_config(tiny_cfg("DETR", "TRACKING.PROJECT", ""))


def test_a_folder_of_the_name_is_no_package(monkeypatch, tmp_path):
    """Such as OUTPUT_DIR/wandb, when the program is started there."""
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert checks._is_installed("json") and not checks._is_installed("some_tracker")


def test_the_config_names_the_run(tmp_path):
    cfg = tiny_cfg("DETR", "TRACKING.WRITERS", ("wandb", "mlflow"), "OUTPUT_DIR", str(tmp_path / "mine"))
    _, *writers = build_writers(cfg, max_iter=10, resumed=lambda: False)
    assert [writer.tracker.name for writer in writers] == ["wandb", "mlflow"]
    assert {writer.tracker.run_name for writer in writers} == {"mine"}
    assert writers[0].tracker.config["MODEL.DETR.NHEADS"] == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bbox/AP-copper disc", "bbox/AP-copper disc"),
        ("coco:/data//a.json@b/bbox/AP-é (x)", "coco_/data/a.json_b/bbox/AP-é _x_"),
        ("/a/", "a"),
    ],
)
def test_names_that_mlflow_takes(name, expected):
    assert metric_name(name) == expected


def offline(name, folder, *, resumed=False, first=0):
    tracker = TRACKERS[name](
        project="p", run_name="r", output_dir=str(folder), config={"SEED": 1, "LONG": "x" * 900}, offline=True
    )
    train(tracker, folder, first=first, resumed=resumed)
    return json.loads((folder / tracking.RUNS_FILE).read_text())[name]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr(tracking, "_SECONDS_AT_END", 300.0)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_id = offline("wandb", tmp_path)
    assert offline("wandb", tmp_path, resumed=True, first=4) == run_id
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{run_id}.wandb"}
    content = b"".join(file.read_bytes() for file in files)
    assert b"bbox/AP" in content and b"total_loss" in content


def test_mlflow_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_SECONDS_AT_END", 300.0)
    client_type = pytest.importorskip("mlflow.tracking").MlflowClient
    pytest.importorskip("sqlalchemy")
    run_id = offline("mlflow", tmp_path)
    assert offline("mlflow", tmp_path, resumed=True, first=4) == run_id
    client = client_type(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "r" and run.data.params["SEED"] == "1"
    history = [(each.step, each.value) for each in client.get_metric_history(run_id, "total_loss")]
    assert history == [(1, 9.0), (3, 7.0), (5, 5.0), (5, 5.0), (7, 3.0), (9, 1.0)]
    assert client.get_metric_history(run_id, "bbox/AP")[0].value == 50
    assert Path(tmp_path, "mlflow.db").is_file()
