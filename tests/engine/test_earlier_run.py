"""A training in the folder of another one keeps the files of that one, and its page tells of itself alone."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import SMALL_DETR, run_train_net
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.checkpoint.run_files import SaveError
from updetr_d2.engine.earlier_run import set_aside_earlier_run
from updetr_d2.report.run_folder import RunFolder

CONFIG = "custom/updetr_r50_finetune.yaml"


@pytest.fixture(name="data")
def _data(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    registered = set(DatasetCatalog)
    name = write_tiny_coco(tmp_path)
    yield ("DATASETS.TRAIN", f'("{name}",)', "DATASETS.TEST", f'("{name}",)', "SOLVER.CHECKPOINT_PERIOD", 1)
    forget_runs(registered)


def logged_iterations(folder):
    return {json.loads(line)["iteration"] for line in (folder / "metrics.json").open()}


def test_a_second_training_keeps_the_first_and_starts_its_own_metrics(data, tmp_path):
    output = tmp_path / "run"
    run_train_net(CONFIG, output, *SMALL_DETR, *data, "SOLVER.MAX_ITER", 3)
    first = torch.load(output / "model_final.pth", weights_only=True)["model"]
    # From the weights that are put aside.
    second = ("SOLVER.MAX_ITER", 2, "MODEL.WEIGHTS", output / "model_final.pth")
    run_train_net(CONFIG, output, *SMALL_DETR, *data, *second)
    assert f"are in {output / 'earlier_1'} now" in (output / "log.txt").read_text()
    kept = torch.load(output / "earlier_1" / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(kept[name], first[name]) for name in first)
    assert {path.name for path in output.glob("model_*.pth")} == {
        *("model_0000000.pth", "model_0000001.pth", "model_final.pth")
    }
    assert max(logged_iterations(output / "earlier_1")) == 3 and max(logged_iterations(output)) == 2
    assert RunFolder.read(output / "earlier_1").config["SOLVER.MAX_ITER"] == 3
    assert (output / "inference").is_dir() and (output / "earlier_1" / "inference").is_dir()


def test_resume_moves_nothing(data, tmp_path):
    output = tmp_path / "run"
    run_train_net(CONFIG, output, *SMALL_DETR, *data, "SOLVER.MAX_ITER", 2)
    run_train_net(CONFIG, output, *SMALL_DETR, *data, "SOLVER.MAX_ITER", 3, flags=["--resume"])
    assert not list(output.glob("earlier_*"))
    assert (output / "model_0000000.pth").is_file() and max(logged_iterations(output)) == 3


def test_numbers_go_on_and_files_of_others_stay(tmp_path):
    for number in (1, 2):
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
        (tmp_path / "notes.txt").write_text("mine")
        set_aside_earlier_run(str(tmp_path))
        assert (tmp_path / f"earlier_{number}" / "last_checkpoint").is_file()
    set_aside_earlier_run(str(tmp_path))  # nothing is left of a run
    assert not (tmp_path / "earlier_3").exists() and (tmp_path / "notes.txt").is_file()


def test_a_folder_that_cannot_be_moved_is_said(tmp_path, monkeypatch):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")

    def refuse(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(
        SaveError, match=r"holds an earlier training, which cannot be moved .*Permission denied"
    ):
        set_aside_earlier_run(str(tmp_path))
