"""Class-agnostic AR and AP: objects of any class count alike, few boxes are enough for AR@10."""

import json

import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from updetr_d2.evaluation.class_agnostic import ClassAgnosticEvaluator
from updetr_d2.evaluation.error_report import ErrorReport


def labeled(*boxes, image_id=1, crowd=()):
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, "iscrowd": int(i in crowd)}
        for i, box in enumerate(boxes)
    ]
    return {"image_id": image_id, "file_name": f"{image_id}.jpg", "annotations": annotations}


def prediction(*rows):
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"instances": Instances((100, 100), pred_boxes=Boxes(rows[:, :4]), scores=rows[:, 4])}


def evaluate(pairs, folder=None):
    evaluator = ClassAgnosticEvaluator([truth for truth, _ in pairs], output_folder=folder)
    for truth, output in pairs:
        if output is not None:
            evaluator.process([truth], [output])
    return evaluator.evaluate()["class_agnostic"]


def test_perfect_boxes_of_any_class(tmp_path):
    boxes = ([0, 0, 30, 30], [50, 50, 90, 100])
    results = evaluate([(labeled(*boxes), prediction(*([*box, 0.9] for box in boxes)))], str(tmp_path))
    assert results == pytest.approx({"AR@10": 100, "AR@100": 100, "AP": 100, "AP50": 100, "AP75": 100})
    assert json.loads((tmp_path / "class_agnostic_results.json").read_text()) == results


def test_ar_counts_thresholds_that_a_box_reaches():
    """IoU 0.72 reaches 0.5, 0.55 ... 0.7: 5 of 10 thresholds; the other object is not found."""
    results = evaluate([(labeled([0, 0, 50, 100], [60, 0, 90, 50]), prediction([0, 0, 36, 100, 0.5]))])
    assert results["AR@10"] == pytest.approx(25)
    assert results["AP50"] == pytest.approx(100 * 51 / 101)  # recall 0 ... 0.5 of 101 points
    assert results["AP75"] == 0


def test_a_box_after_the_tenth_counts_for_ar_100_alone():
    wrong = [[i, 0, i + 5, 5, 0.9] for i in range(10)]
    results = evaluate([(labeled([40, 40, 90, 90]), prediction(*wrong, [40, 40, 90, 90, 0.1]))])
    assert (results["AR@10"], results["AR@100"]) == pytest.approx((0, 100))


def test_crowds_are_neither_missed_nor_false():
    crowd = labeled([0, 0, 20, 20], [50, 50, 90, 90], crowd=(1,))
    results = evaluate([(crowd, prediction([0, 0, 20, 20, 0.5], [50, 50, 90, 90, 0.9]))])
    assert (results["AR@10"], results["AP"]) == pytest.approx((100, 100))


def test_images_that_were_not_evaluated_do_not_count():
    first = (labeled([0, 0, 20, 20], image_id="a"), prediction([0, 0, 20, 20, 0.5]))
    assert evaluate([first, (labeled([0, 0, 9, 9], image_id="b"), None)])["AR@10"] == pytest.approx(100)


def test_without_predictions_everything_is_zero():
    assert set(evaluate([(labeled([0, 0, 20, 20]), prediction())]).values()) == {0.0}


def test_a_data_set_without_labels_is_an_error():
    with pytest.raises(ValueError, match="no labels"):
        ClassAgnosticEvaluator([{"image_id": 1, "file_name": "1.jpg"}])


def test_errors_of_pre_trained_detectors_are_counted_and_drawn(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{name}.jpg")
    truths = [labeled([0, 0, 30, 30], image_id="a", crowd=()), labeled([50, 50, 90, 90], image_id="b")]
    for truth in truths:
        truth["file_name"] = str(tmp_path / truth["file_name"])
    report = ErrorReport(str(tmp_path / "out"), num_pictures=2, max_images=10)
    evaluator = ClassAgnosticEvaluator(truths, name="objects", error_report=report)
    # Not in the order of their scores, as a model need not give them.
    evaluator.process(truths[:1], [prediction([60, 60, 80, 80, 0.7], [0, 0, 30, 30, 0.9])])
    evaluator.process(truths[1:], [prediction()])
    results = evaluator.evaluate()["class_agnostic"]
    content = json.loads((tmp_path / "out/errors.json").read_text())
    assert content["AP50"] == pytest.approx(results["AP50"]) and content["dataset"] == "objects"
    assert content["class_names"] == ["object"] and content["counts"]["right"] == 1
    assert content["pictures"]["worst"] == {"01_b.jpg": "b.jpg: 1 missed"}
    assert (tmp_path / "out/errors/best/01_a.jpg").is_file()
