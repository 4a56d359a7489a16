"""One-shot AP: only evaluated pairs count, rounds are averaged, seen and unseen classes have their own means."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.structures import Boxes, BoxMode, Instances
from voc_folder import write_voc_folder

from updetr_d2.data.oneshot.splits import ClassSplit
from updetr_d2.evaluation import OneShotEvaluator
from updetr_d2.evaluation.error_report import ErrorReport
from updetr_d2.evaluation.oneshot import QueryResult, coco_measures

NAMES = ["ant", "bee", "cat", "dog"]
ANT, BEE, CAT, DOG = range(4)
A, B, ELSEWHERE = (10, 10, 30, 30), (50, 20, 90, 60), (60, 70, 70, 80)
SPLIT = ClassSplit(seen=(ANT, BEE, CAT), unseen=(DOG,))


def image(number, *objects):
    """Objects are (class id, XYXY box[, iscrowd])."""
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "iscrowd": sum(crowd)}
        for c, box, *crowd in objects
    ]
    size = {"height": 100, "width": 100}
    return {"file_name": f"{number}.jpg", "image_id": number, **size, "annotations": annotations}


IMAGES = [
    image("one", (ANT, A), (ANT, B), (DOG, ELSEWHERE)),
    image("two", (ANT, A), (DOG, B)),
    image("three", (BEE, A)),
]


def result(number, query_class, *boxes_and_scores, query_round=0):
    boxes, scores = zip(*boxes_and_scores)
    return QueryResult(number, query_class, query_round, np.float32(boxes), np.float32(scores))


def precision_at_recall(*points):
    """COCO's AP in percent of a curve that has ``precision`` up to each ``recall``, by its 101 recall points."""
    values = [
        max((p for recall, p in points if recall >= r - 1e-9), default=0) for r in np.linspace(0, 1, 101)
    ]
    return 100 * np.mean(values)


def test_perfect_boxes_give_100_and_classes_without_pairs_nothing():
    results = [
        result("one", ANT, (A, 0.9), (B, 0.8)),
        result("two", ANT, (A, 0.7)),
        result("two", DOG, (B, 0.3)),
    ]
    measured = coco_measures(IMAGES, results, 4)
    for values in measured.values():
        np.testing.assert_allclose(values, [100, np.nan, np.nan, 100])


def test_wrong_box_above_a_right_one_by_hand():
    """Three ants; ranked: right, wrong, right; the third is missed. Precision 1 to recall 1/3, 2/3 to 2/3."""
    results = [
        result("one", ANT, (A, 0.9), (ELSEWHERE, 0.8), (B, 0.5)),
        result("two", ANT, (ELSEWHERE, 0.1)),
    ]
    measured = coco_measures(IMAGES, results, 4)
    assert measured["AP50"][ANT] == pytest.approx(precision_at_recall((1 / 3, 1), (2 / 3, 2 / 3)))


def test_ap_averages_over_ious():
    """A box of IoU 0.7 counts at the five thresholds 0.5 ... 0.7 of ten."""
    shorter = (10, 10, 30, 24.1)
    measured = coco_measures(IMAGES, [result("three", BEE, (shorter, 0.5))], 4)
    assert measured["AP50"][BEE] == pytest.approx(100)
    assert measured["AP"][BEE] == pytest.approx(50)


def test_objects_of_pairs_that_were_not_evaluated_are_not_missed():
    """Without the pair (one, ant), the two ants of this image do not count, nor does its dog for the ants."""
    measured = coco_measures(IMAGES, [result("two", ANT, (A, 0.5))], 4)
    assert measured["AP50"][ANT] == pytest.approx(100)


def test_objects_of_other_classes_are_false_positives():
    """The dog's box under a query for ants is wrong even though there is something."""
    measured = coco_measures(IMAGES, [result("two", ANT, (B, 0.9), (A, 0.5))], 4)
    assert measured["AP50"][ANT] == pytest.approx(50)


def test_crowds_are_neither_missed_nor_false():
    images = [image("one", (ANT, A), (ANT, B, 1))]
    measured = coco_measures(images, [result("one", ANT, (B, 0.9), (A, 0.5))], 4)
    assert measured["AP50"][ANT] == pytest.approx(100)


@pytest.fixture
def dataset():
    name = "insects_of_a_test"
    DatasetCatalog.register(name, lambda: IMAGES)
    MetadataCatalog.get(name).set(thing_classes=NAMES, evaluator_type="coco")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def process(evaluator, number, query_class, *boxes_and_scores, query_round=0):
    boxes, scores = zip(*boxes_and_scores)
    instances = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes)), scores=torch.tensor(scores))
    sample = {"image_id": number, "query_class": query_class, "query_round": query_round}
    evaluator.process([sample], [{"instances": instances}])


def test_rounds_are_averaged_and_classes_grouped(dataset, tmp_path):
    evaluator = OneShotEvaluator(dataset, split=SPLIT, num_shots=3, seed=5, output_folder=str(tmp_path))
    evaluator.reset()
    for i, box in enumerate((A, ELSEWHERE)):  # the first round finds the ant and the bee, the second nothing
        process(evaluator, "two", ANT, (box, 0.5), query_round=i)
        process(evaluator, "three", BEE, (box, 0.5), query_round=i)
        process(evaluator, "two", DOG, (B, 0.5), query_round=i)
    results = evaluator.evaluate()["oneshot"]
    expected = {"AP50-ant": 50, "AP50-bee": 50, "AP50-dog": 100, "seen_AP50": 50, "unseen_AP50": 100}
    assert {key: results[key] for key in expected} == pytest.approx(expected)
    assert "AP50-cat" not in results  # no pair
    assert (results["num_queries"], results["num_shots"], results["seed"]) == (2, 3, 5)
    content = json.loads((tmp_path / "oneshot_results.json").read_text())
    assert (content["num_queries"], content["num_shots"], content["seed"], content["num_pairs"]) == (
        2,
        3,
        5,
        6,
    )
    assert content["seen_classes"] == ["ant", "bee", "cat"]
    assert content["unseen_classes"] == ["dog"]
    assert [each["seen_AP50"] for each in content["rounds"]] == pytest.approx([100, 0])
    assert content["seen_AP50"] == pytest.approx(50)


def test_processes_together_measure_what_one_alone_does(dataset, monkeypatch):
    whole, *parts = (OneShotEvaluator(dataset, split=SPLIT, num_shots=1, seed=0) for _ in range(3))
    answers = [
        ("one", ANT, (A, 0.9), (ELSEWHERE, 0.8)),
        ("two", ANT, (ELSEWHERE, 0.85), (A, 0.4)),
        ("two", DOG, (B, 0.2)),
        ("three", BEE, (A, 0.3)),
    ]
    for i, answer in enumerate(answers):
        process(whole, *answer)
        process(parts[i % 2], *answer)
    expected = whole.evaluate()
    gathered = [part._results for part in parts]
    monkeypatch.setattr("updetr_d2.evaluation.oneshot.comm.gather", lambda own: gathered)
    assert parts[0].evaluate() == expected
    monkeypatch.setattr("updetr_d2.evaluation.oneshot.comm.is_main_process", lambda: False)
    assert parts[1].evaluate() is None


def test_nothing_evaluated_is_an_error(dataset):
    with pytest.raises(ValueError, match="No image of the test set could be used"):
        OneShotEvaluator(dataset, split=SPLIT, num_shots=1, seed=0).evaluate()


def test_voc_is_measured_by_its_own_rules_as_well(tmp_path):
    """One of two dogs found gives VOC's 11-point AP 6/11 and COCO's 51/101; the difficult cat is ignored."""
    objects = {
        "000001": [("dog", (11, 11, 30, 30), 0), ("dog", (51, 21, 90, 60), 0), ("cat", (1, 1, 9, 9), 1)]
    }
    objects["000002"] = [("cat", (11, 11, 30, 30), 0)]
    write_voc_folder(tmp_path / "VOC2007", {"test": objects}, size=(100, 100))
    name = "voc_2007_of_a_test"
    register_pascal_voc(name, str(tmp_path / "VOC2007"), "test", 2007, class_names=["cat", "dog"])
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    evaluator = OneShotEvaluator(name, split=ClassSplit(seen=(0,), unseen=(1,)), num_shots=1, seed=0)
    try:
        process(evaluator, "000001", 1, (A, 0.9))
        process(evaluator, "000002", 0, (A, 0.9))
        results = evaluator.evaluate()["oneshot"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert results["unseen_AP50"] == pytest.approx(100 * 51 / 101)
    assert results["unseen_voc_AP50"] == pytest.approx(100 * 6 / 11)
    assert results["seen_AP50"] == pytest.approx(100)
    assert results["seen_voc_AP50"] == pytest.approx(100)


def test_errors_are_counted_query_by_query(dataset, tmp_path):
    """The first round alone; objects of other classes than the query's are neither missed nor found."""
    report = ErrorReport(str(tmp_path), num_pictures=3, max_images=10)
    evaluator = OneShotEvaluator(dataset, split=SPLIT, num_shots=1, seed=0, error_report=report)
    process(evaluator, "two", ANT, (ELSEWHERE, 0.6), (A, 0.8))
    process(evaluator, "two", ANT, (ELSEWHERE, 0.9), query_round=1)
    process(evaluator, "one", DOG, (A, 0.9))
    process(evaluator, "three", BEE, (A, 0.7))
    evaluator.evaluate()
    content = json.loads((tmp_path / "errors.json").read_text())
    assert content["num_images"] == 3 and content["class_names"] == NAMES
    expected = {"right": 2, "background": 1, "missed": 1}  # from 0.7 on
    assert {kind: count for kind, count in content["counts"].items() if count} == expected
    # Their files are not there, so that nothing is drawn.
    assert content["pictures"] == {"worst": {}, "best": {}, "random": {}, "labels": {}}
