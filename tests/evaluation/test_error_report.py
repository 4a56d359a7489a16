"""What an evaluation leaves beside its results: kinds of errors, pictures; bounded, and never the end of a run."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from helpers import tiny_cfg
from PIL import Image
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.evaluation import error_report
from updetr_d2.evaluation.build import build_dataset_evaluator
from updetr_d2.evaluation.detection_errors import ErrorSummary


@pytest.fixture(name="name")
def _name(tmp_path, monkeypatch):
    """Four images with a cat or a dog each, in a box at 2, 2, 22, 22."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    name = write_tiny_coco(tmp_path)
    ensure_registered([name])
    yield name
    forget_runs(before)


def evaluate(name, folder, *options, found=None):
    """Evaluate boxes; ``found`` is for each image a list of (box, class, score), by default what is labeled."""
    cfg = tiny_cfg("DETR", *options)
    evaluator = build_dataset_evaluator(cfg, name, str(folder))
    evaluator.reset()
    for i, each in enumerate(DatasetCatalog.get(name)):
        boxes = [([2, 2, 22, 22], each["annotations"][0]["category_id"], 0.9)] if found is None else found[i]
        size = each["height"], each["width"]
        instances = Instances(
            size,
            pred_boxes=Boxes(torch.tensor([box for box, _, _ in boxes], dtype=torch.float).reshape(-1, 4)),
            pred_classes=torch.tensor([label for _, label, _ in boxes], dtype=torch.long),
            scores=torch.tensor([score for _, _, score in boxes]),
        )
        sample = {"image_id": each["image_id"], "file_name": each["file_name"]}
        evaluator.process([sample], [{"instances": instances}])
    return evaluator.evaluate()


def read(folder):
    return json.loads((folder / "errors.json").read_text())


def pictures(folder):
    return {group: sorted(os.listdir(folder / "errors" / group)) for group in os.listdir(folder / "errors")}


def test_errors_are_counted_and_drawn(name, tmp_path):
    found = [
        [([2, 2, 22, 22], 0, 0.9)],
        [([2, 2, 22, 22], 0, 0.8)],  # a dog
        [([2, 2, 22, 22], 0, 0.7), ([30, 30, 38, 38], 1, 0.6)],
        [],
    ]
    results = evaluate(name, tmp_path / "out", found=found)
    content = read(tmp_path / "out")
    assert content["dataset"] == name and (content["num_images"], content["num_analyzed"]) == (4, 4)
    assert content["AP50"] == pytest.approx(results["bbox"]["AP50"])
    assert json.loads((tmp_path / "out/bbox_results.json").read_text())["AP50"] == results["bbox"]["AP50"]
    assert content["score_threshold"] == pytest.approx(0.7)
    expected = {"right": 2, "class": 1, "missed": 1}
    assert {kind: count for kind, count in content["counts"].items() if count} == expected
    # The worst: the picture without the dog's box, then that of the wrong class.
    assert pictures(tmp_path / "out") == {
        "worst": ["01_1.jpg", "02_3.jpg"],
        "best": ["01_0.jpg", "02_2.jpg"],
        "labels": ["01_1.jpg", "02_3.jpg"],
    }
    assert content["pictures"]["worst"]["01_1.jpg"] == "1.png: 1 wrong"
    told = [
        (s["kind"], os.path.basename(s["image"]), s["found"], s["labeled"])
        for s in content["suspicious_labels"]
    ]
    assert told == [("another label", "1.png", "cat", "dog"), ("never found", "3.png", None, "dog")]
    picture = np.array(Image.open(tmp_path / "out/errors/worst/01_1.jpg"))
    assert max(picture.shape[:2]) == 640
    edge = picture[round(22 * 640 / 48), round(12 * 640 / 48)].astype(int)
    assert np.abs(edge - [0xD9, 0x46, 0xEF]).max() < 60  # the color of class, but for JPEG


def test_the_summary_comes_back_from_its_file(name, tmp_path):
    evaluate(name, tmp_path / "out")
    content = read(tmp_path / "out")
    summary = ErrorSummary.from_json(content)
    assert summary.to_json() == {key: content[key] for key in summary.to_json()}
    assert summary.precision.tolist() == [1.0] * 101


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": [[1]]},
        {"confusion": "x"},
        {"counts": {}},
        {"AP50": None},
        {"AP50": float("nan")},
        {"precision_at_recalls": {"cat": [1.0]}},
        {"precision_at_recalls": []},
        {"class_names": 5},
    ],
)
def test_a_damaged_summary_is_a_value_error(name, tmp_path, change):
    evaluate(name, tmp_path / "out")
    with pytest.raises(ValueError):
        ErrorSummary.from_json(read(tmp_path / "out") | change)


def test_pictures_of_the_last_evaluation_are_gone(name, tmp_path):
    evaluate(name, tmp_path / "out", found=[[]] * 3 + [[([2, 2, 22, 22], 1, 0.9)]])
    assert len(pictures(tmp_path / "out")["worst"]) == 3
    evaluate(name, tmp_path / "out")
    assert set(pictures(tmp_path / "out")) == {"best"}


def test_the_number_of_pictures_and_of_images_is_bounded(name, tmp_path):
    evaluate(name, tmp_path / "out", "TEST.VIS_IMAGES", 1, "TEST.ERROR_IMAGES", 3)
    content = read(tmp_path / "out")
    assert (content["num_images"], content["num_analyzed"]) == (4, 3)
    assert sum(content["counts"].values()) == 3
    assert {group: len(files) for group, files in pictures(tmp_path / "out").items()} == {
        "best": 1,
        "random": 1,
    }


def test_a_key_turns_them_off(name, tmp_path):
    assert evaluate(name, tmp_path / "out", "TEST.VIS_IMAGES", 0)["bbox"]["AP"] == pytest.approx(100)
    assert not (tmp_path / "out/errors.json").exists() and not (tmp_path / "out/errors").exists()


def test_the_sample_is_random_and_the_same_each_time():
    ids = [f"{i}" for i in range(100)]
    chosen = error_report.choose_images(ids, 10)
    assert chosen == error_report.choose_images(ids, 10) and len(set(chosen)) == 10
    assert chosen == sorted(chosen, key=int) and chosen != ids[:10]
    assert error_report.choose_images(ids, 100) == ids


def test_an_image_that_has_gone_has_no_picture(name, tmp_path, caplog):
    (tmp_path / "images/0.png").unlink()
    with caplog.at_level(logging.WARNING, "updetr_d2"):
        evaluate(name, tmp_path / "out")
    assert "No picture of" in caplog.text and "0.png" in caplog.text
    assert len(pictures(tmp_path / "out")["best"]) == 3


def test_a_fault_in_drawing_ends_nothing(name, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(error_report, "draw_errors", lambda *_, **__: 1 / 0)
    assert evaluate(name, tmp_path / "out")["bbox"]["AP"] == pytest.approx(100)
    assert "were not drawn" in caplog.text and "ZeroDivisionError" in caplog.text
    assert not (tmp_path / "out/errors.json").exists()


def test_the_images_of_all_processes_count_and_one_of_them_draws(name, tmp_path, monkeypatch):
    """The other process has seen an image that this one has not, and found nothing there."""
    other = {0: str(tmp_path / "images/0.png")}
    monkeypatch.setattr(comm, "all_gather", lambda own: [{k: v for k, v in own.items() if k}, other])
    evaluate(name, tmp_path / "out")
    assert read(tmp_path / "out")["num_images"] == 4
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    evaluate(name, tmp_path / "second")
    assert not (tmp_path / "second/errors.json").exists()
