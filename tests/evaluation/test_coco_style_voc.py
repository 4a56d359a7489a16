"""VOC measured COCO's way and VOC's way at once, with difficult objects ignored in both."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.structures import Boxes, Instances
from voc_folder import write_voc_folder

from updetr_d2.evaluation.coco_style_voc import build_voc_evaluator, coco_style_ground_truth

NAME = "coco_style_voc_test"
CLASSES = ("cat", "dog")
# Objects (class, XYXY in VOC's 1-based inclusive pixels, difficult) of images of 80 x 60 px.
OBJECTS = {
    "000001": [("cat", (11, 11, 30, 30), 0), ("dog", (41, 21, 60, 40), 1)],
    "000002": [("dog", (1, 1, 80, 60), 0)],
    "000003": [],
}


@pytest.fixture(autouse=True)
def _voc(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    write_voc_folder(tmp_path / "VOC2007", {"test": OBJECTS}, size=(80, 60))
    register_pascal_voc(NAME, str(tmp_path / "VOC2007"), "test", 2007, CLASSES)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(predictions, tmp_path):
    """Results of the evaluator on predictions ``{image_id: [(class, XYXY from 0, score)]}``."""
    evaluator = build_voc_evaluator(NAME, str(tmp_path / "results"))
    evaluator.reset()
    for image_id in OBJECTS:
        boxes = predictions.get(image_id, [])
        instances = Instances(
            (60, 80),
            pred_boxes=Boxes(torch.tensor([box for _, box, _ in boxes], dtype=torch.float32).reshape(-1, 4)),
            scores=torch.tensor([score for *_, score in boxes]),
            pred_classes=torch.tensor([CLASSES.index(name) for name, *_ in boxes], dtype=torch.int64),
        )
        evaluator.process([{"image_id": image_id, "height": 60, "width": 80}], [{"instances": instances}])
    return evaluator.evaluate()


PERFECT = {
    "000001": [("cat", (10, 10, 30, 30), 0.9)],
    "000002": [("dog", (0, 0, 80, 60), 0.8)],
}


def test_ground_truth_has_the_loaders_boxes_and_ignores_difficult_objects():
    content = coco_style_ground_truth(NAME)
    assert [image["id"] for image in content["images"]] == ["000001", "000002", "000003"]
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    found = [(a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in content["annotations"]]
    assert found == [
        ("000001", 0, [10, 10, 20, 20], 0),
        ("000001", 1, [40, 20, 20, 20], 1),
        ("000002", 1, [0, 0, 80, 60], 0),
    ]
    assert [a["area"] for a in content["annotations"]] == [400, 400, 4800]


def test_both_results_have_names_of_their_own(tmp_path):
    results = evaluate(PERFECT, tmp_path)
    assert set(results) == {"bbox", "voc_bbox"}
    for name in ("AP", "AP50", "AP75"):
        assert results["bbox"][name] == pytest.approx(100)
        assert results["voc_bbox"][name] == pytest.approx(100)


def test_finding_or_missing_a_difficult_object_changes_nothing(tmp_path):
    found = {**PERFECT, "000001": [*PERFECT["000001"], ("dog", (40, 20, 60, 40), 0.99)]}
    results = evaluate(found, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["voc_bbox"]["AP"] == pytest.approx(100)


def test_missed_objects_and_false_alarms_lower_both(tmp_path):
    # The dog is missed; a false cat stands before the true one: precision 1/2 at every recall.
    predictions = {"000001": [("cat", (50, 30, 70, 50), 0.95), *PERFECT["000001"]]}
    results = evaluate(predictions, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(np.mean([50, 0]))
    assert results["voc_bbox"]["AP50"] == pytest.approx(np.mean([50, 0]))


def test_evaluating_again_after_the_labels_changed_uses_the_new_ones(tmp_path):
    assert evaluate(PERFECT, tmp_path)["bbox"]["AP"] == pytest.approx(100)
    moved = {**OBJECTS, "000002": [("dog", (1, 1, 20, 20), 0)]}
    write_voc_folder(tmp_path / "VOC2007", {"test": moved}, size=(80, 60))
    assert evaluate(PERFECT, tmp_path)["bbox"]["AP"] == pytest.approx(50)
