"""The weights with the best result stay, a training that gets no better ends, and a resumed run knows the best."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import tiny_cfg
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.engine.trainer import UPDETRTrainer
from updetr_d2.tasks import check_config


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains with the results given, one for each iteration; returns the best file and the last iteration."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    name = write_tiny_coco(tmp_path)
    ensure_registered([name])

    def train(results, *options, max_iter=None, resume=False):
        count = len(results) if max_iter is None else max_iter
        size = ("INPUT.MIN_SIZE_TRAIN", (32,), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0)
        schedule = ("SOLVER.MAX_ITER", count, "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1)
        places = ("DATASETS.TRAIN", (name,), "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DETR.NUM_CLASSES", 2)
        cfg = tiny_cfg("DETR", *size, *schedule, *places, "SOLVER.BEST_METRIC", "bbox/AP", *options)
        remaining = iter(results)
        trainer = UPDETRTrainer(cfg)
        monkeypatch.setattr(UPDETRTrainer, "test", lambda *_: {"bbox": {"AP": next(remaining)}})
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return torch.load(tmp_path / "run" / "model_best.pth", weights_only=True), trainer.iter

    yield train
    forget_runs(before)


def same(one, other):
    return all(torch.equal(one["model"][name], tensor) for name, tensor in other["model"].items())


def load(tmp_path, name):
    return torch.load(tmp_path / "run" / name, weights_only=False)


def test_the_weights_of_the_best_result_stay(train, tmp_path):
    best, _ = train([1.0, 3.0, float("nan"), 2.0])
    assert best["best"] == {"metric": "bbox/AP", "value": 3.0, "iteration": 1}
    assert same(best, load(tmp_path, "model_0000001.pth"))
    assert not same(best, load(tmp_path, "model_final.pth"))
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"


def test_the_last_result_may_be_the_best(train, tmp_path):
    best, _ = train([1.0, 3.0])
    assert same(best, load(tmp_path, "model_final.pth"))


def test_a_training_that_gets_no_better_ends_with_its_last_checkpoint(train, tmp_path):
    best, last = train([1.0, 3.0, 3.0, 2.0, 9.0], "SOLVER.PATIENCE", 2)
    assert best["best"]["iteration"] == 1 and last == 3
    assert load(tmp_path, "model_final.pth")["iteration"] == 3


def test_patience_starts_anew_with_each_better_result(train):
    best, last = train([1.0, 0.5, 2.0, 0.5, 3.0, 1.0], "SOLVER.PATIENCE", 2)
    assert best["best"]["value"] == 3.0 and last == 6


def test_a_resumed_run_knows_the_best_result(train):
    train([5.0, 1.0], "SOLVER.PATIENCE", 3)
    best, last = train([2.0, 3.0, 4.0], "SOLVER.PATIENCE", 3, max_iter=5, resume=True)
    assert best["best"]["value"] == 5.0 and last == 3
    best, _ = train([2.0])  # another run in the same folder
    assert best["best"]["value"] == 2.0


def test_a_result_that_is_not_there_is_told(train, caplog, tmp_path):
    with pytest.raises(FileNotFoundError):
        train([1.0], "SOLVER.BEST_METRIC", "bbox/APx")
    assert "'bbox/APx' is not among the results; known are bbox/AP" in caplog.text


def test_patience_needs_a_metric():
    with pytest.raises(ValueError, match=r"SOLVER\.PATIENCE is 2, which needs SOLVER\.BEST_METRIC"):
        check_config(tiny_cfg("DETR", "SOLVER.PATIENCE", 2))
