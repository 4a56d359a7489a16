"""``updetr split``: names and contents of its files, from odd labels too."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.cli import split
from updetr_d2.data.datasets.label_splits import Labels


@pytest.fixture(name="labels")
def _labels(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    yield write_tiny_coco(tmp_path).removeprefix("coco:")
    forget_runs(set(DatasetCatalog))


def run(labels, tmp_path, *options) -> tuple[int, dict[str, dict]]:
    status = split.main(["--labels", labels, "--output", str(tmp_path / "out"), *options])
    return status, {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*")}


def test_fractions_and_folds_have_soft_teachers_names(labels, tmp_path, capsys):
    status, files = run(labels, tmp_path, "--percent", "25", "50", "--folds", "1", "2")
    assert status == 0
    expected = {
        f"a.{fold}@{p}{rest}.json" for fold in (1, 2) for p in (25, 50) for rest in ("", "-unlabeled")
    }
    assert set(files) == expected
    assert len(files["a.1@25.json"]["images"]) == 1 and len(files["a.1@25-unlabeled.json"]["images"]) == 3
    assert "dog" in capsys.readouterr().out  # one image has one of the two classes


def test_parts_can_be_trained_on_by_their_names(labels, tmp_path):
    _, files = run(labels, tmp_path, "--shots", "1")
    assert set(files) == {"a.1@1shot.json", "a.1@1shot-unlabeled.json"}
    part = Labels.read(f"{tmp_path}/out/a.1@1shot.json@{tmp_path}/images", option="--labels")
    assert part.objects_per_class() == {"cat": 1, "dog": 1}


def test_all_labels_are_divided_for_choosing(labels, tmp_path):
    status, files = run(labels, tmp_path, "--held-out", "0.25")
    assert status == 0 and set(files) == {"a.1-train.json", "a.1-held-out.json"}
    assert [len(files[f"a.1-{part}.json"]["images"]) for part in ("train", "held-out")] == [3, 1]


def test_images_that_nobody_has_labeled_do_not_count_as_background(labels, tmp_path, caplog, monkeypatch):
    content = json.loads((tmp_path / "a.json").read_text())
    empty = {content["images"][1]["id"], content["images"][3]["id"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] not in empty]
    (tmp_path / "a.json").write_text(json.dumps(content))
    split.setup_logger(name="updetr_d2")
    monkeypatch.setattr(logging.getLogger("updetr_d2"), "propagate", True)
    status, _ = run(labels, tmp_path, "--held-out", "0.5")
    assert status == 0 and "2 of 4 images have no object: say --labeled-only" in caplog.text

    caplog.clear()
    status, files = run(labels, tmp_path / "clean", "--held-out", "0.5", "--labeled-only")
    assert status == 0 and "have no object" not in caplog.text
    assert {each["id"] for each in files["a-unlabeled.json"]["images"]} == empty
    assert not files["a-unlabeled.json"]["annotations"]
    parts = [
        {each["id"] for each in files[f"a{part}.json"]["images"]} for part in (".1-train", ".1-held-out")
    ]
    assert [len(part) for part in parts] == [1, 1] and not empty & (parts[0] | parts[1])
    assert len(files["a-labeled.json"]["images"]) == 2


def test_odd_labels_are_repaired_first(labels, tmp_path):
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0]["bbox"] = ["2", "2", "20", "20"]
    content["annotations"].append({"id": 99, "image_id": 77, "category_id": 1, "bbox": [0, 0, 5, 5]})
    (tmp_path / "a.json").write_text(json.dumps(content))
    status, files = run(labels, tmp_path, "--percent", "100")
    assert status == 0
    annotations = files["a.1@100.json"]["annotations"]
    assert len(annotations) == 4 and annotations[0]["bbox"] == [2, 2, 20, 20]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Say how to divide"),
        (("--shots", "0"), "--shots must be at least 1"),
        (("--percent", "1"), "not a single one"),
        (("--percent", "100", "50", "--held-out", "0.5"), "too few to hold some out"),
        (("--shots", "5"), "The class 'cat' has 2 objects in a.json, fewer than the 5"),
        (("--percent", "50", "--seeds", "-1"), "--seeds must be in"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(labels, tmp_path, capsys, options, words):
    status, files = run(labels, tmp_path, *options)
    assert status == 1 and not files
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error


@pytest.mark.parametrize(
    ("location", "words"),
    [("a.json", "must name an annotation file and the folder"), ("a.json@nowhere", "which does not exist")],
)
def test_labels_that_are_not_there_are_named(tmp_path, capsys, location, words):
    assert split.main(["--labels", location, "--output", str(tmp_path), "--percent", "50"]) == 1
    assert words in capsys.readouterr().err
