"""Patch AP is COCO's AP when every patch is an image of its own; boxes are compared in original pixels."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from updetr_d2.evaluation import QueryPatchEvaluator
from updetr_d2.evaluation.query_patch import average_precision


def coco_ap(boxes, predictions, scores):
    """pycocotools on one image per patch: [AP, AP50, AP75]."""
    gt = COCO()
    images = [{"id": i + 1, "height": 100, "width": 100} for i in range(len(boxes))]
    gt.dataset = {"images": images, "categories": [{"id": 1, "name": "patch"}], "annotations": []}
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
        gt.dataset["annotations"].append({"id": i + 1, "image_id": i + 1, "category_id": 1, **box})
    results = [
        {"image_id": i + 1, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
        for i, ((x0, y0, x1, y1), score) in enumerate(zip(predictions, scores))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


def sample(boxes, size=(100, 100), original=(100, 100)):
    instances = Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    return {
        "image": torch.zeros(3, *size, dtype=torch.uint8),
        "patches": torch.zeros(len(boxes), 3, 8, 8, dtype=torch.uint8),
        "height": original[0],
        "width": original[1],
        "instances": instances,
    }


def output(boxes, scores, size=(100, 100)):
    boxes = Boxes(torch.as_tensor(np.asarray(boxes), dtype=torch.float32))
    return {"instances": Instances(size, pred_boxes=boxes, scores=torch.as_tensor(scores))}


def test_ap_equals_pycocotools():
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 50, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 50, (60, 2))], axis=1)
    predictions = boxes + rng.normal(0, 4, boxes.shape)
    scores = rng.random(60).round(1)  # with ties
    evaluator = QueryPatchEvaluator()
    for i in range(0, 60, 3):
        chosen = slice(i, i + 3)
        evaluator.process([sample(boxes[chosen].tolist())], [output(predictions[chosen], scores[chosen])])
    results = evaluator.evaluate()["query_patch"]
    expected = coco_ap(boxes, predictions, scores)
    np.testing.assert_allclose([results[k] / 100 for k in ("AP", "AP50", "AP75")], expected, atol=1e-6)


def test_average_precision_by_hand():
    # Ranked: right, wrong, right, wrong. Precision 1 up to recall 1/4, then 2/3 up to recall 1/2: 26 of the
    # 101 recall points get 1, 25 get 2/3, the others 0.
    correct = np.array([False, True, False, True])
    scores = np.array([0.7, 0.9, 0.1, 0.5])
    assert average_precision(correct, scores) == pytest.approx((26 + 25 * 2 / 3) / 101)


def test_boxes_are_compared_in_original_pixels():
    evaluator = QueryPatchEvaluator()
    # The image was resized from 200x400 to 100x100; the prediction is in original pixels.
    evaluator.process(
        [sample([[10, 20, 50, 60]], original=(200, 400))],
        [output([[40, 40, 200, 120]], [0.9], size=(200, 400))],
    )
    assert evaluator.evaluate()["query_patch"]["mIoU"] == pytest.approx(100)


def test_only_the_best_query_of_each_patch_counts():
    evaluator = QueryPatchEvaluator()
    evaluator.process(
        [sample([[0, 0, 10, 10], [20, 20, 40, 40]])],
        [output([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]], [0.9, 0.8, 0.99])],
    )
    results = evaluator.evaluate()["query_patch"]
    assert results["AP"] == pytest.approx(100)
    assert results["recall50"] == pytest.approx(100)


def test_what_a_model_reaches_without_looking_at_its_patch_is_the_level_of_the_others():
    boxes = [[0, 0, 40, 40], [0, 0, 40, 20], [60, 60, 100, 100]]
    found, blind = QueryPatchEvaluator(), QueryPatchEvaluator()
    found.process([sample(boxes)], [output(boxes, [0.5] * 3)])
    blind.process([sample(boxes)], [output([[0, 0, 40, 40]] * 3, [0.5] * 3)])
    # Of the six pairs of a box with another patch's, two have IoU 1/2, four have none.
    results = found.evaluate()["query_patch"]
    assert (results["mIoU"], results["mIoU_others"]) == pytest.approx((100, 100 / 6))
    # IoU 1, 1/2 and 0 with the three patches, each of which is twice another one's.
    results = blind.evaluate()["query_patch"]
    assert (results["mIoU"], results["mIoU_others"]) == pytest.approx((50, 50))


def test_one_patch_an_image_has_no_others():
    evaluator = QueryPatchEvaluator()
    evaluator.process([sample([[0, 0, 50, 50]])], [output([[0, 0, 50, 50]], [0.5])])
    assert "mIoU_others" not in evaluator.evaluate()["query_patch"]


def test_results_and_pictures_are_written(tmp_path):
    evaluator = QueryPatchEvaluator(output_folder=str(tmp_path), num_pictures=1)
    inputs = [sample([[0, 0, 50, 50]]), sample([[0, 0, 50, 50]])]
    evaluator.process(inputs, [output([[0, 0, 50, 40]], [0.5])] * 2)
    evaluator.evaluate()
    results = json.loads((tmp_path / "query_patch_results.json").read_text())
    assert results["num_patches"] == 2
    assert results["mIoU"] == pytest.approx(80)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["0.png"]


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="No image of the test set could be used"):
        QueryPatchEvaluator().evaluate()
