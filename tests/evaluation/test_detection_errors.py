"""AP as COCO counts it, TIDE's kinds of errors against a reference in loops, confusion of classes."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from updetr_d2.evaluation import detection_errors as errors
from updetr_d2.evaluation import detection_matching as matching


def random_case(seed: int, *, num_images: int = 6, crowds: bool = False) -> tuple[dict, list[dict]]:
    """Ground truth and predictions near it, beside it, doubled, of wrong classes and on nothing."""
    rng = np.random.default_rng(seed)
    images = [{"id": 7 * i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(num_images)]
    annotations, predictions = [], []
    for image in images:
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(15, 40, 2)]
            category = int(rng.choice([2, 5, 9]))
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            annotation |= {"bbox": [float(v) for v in box], "area": float(box[2] * box[3])}
            annotations.append(annotation | {"iscrowd": int(crowds and rng.random() < 0.2)})
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.normal(0, rng.choice([1, 6, 14]), 4)
                label = category if rng.random() < 0.7 else int(rng.choice([2, 5, 9]))
                predictions.append(
                    prediction(image["id"], label, [*moved[:2], *np.maximum(moved[2:], 4)], rng)
                )
        for _ in range(rng.integers(0, 3)):
            box = [*rng.uniform(0, 80, 2), *rng.uniform(5, 20, 2)]
            predictions.append(prediction(image["id"], int(rng.choice([2, 5, 9])), box, rng))
    categories = [{"id": i, "name": f"class {i}"} for i in (2, 5, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}, predictions


def prediction(image_id, category, box, rng) -> dict:
    box = [float(v) for v in box]
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": float(rng.random())}


def iou(a, b) -> float:
    """Of two boxes x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def reference_kinds(true: list[dict], found: list[dict]) -> tuple[list[str], list[bool]]:
    """TIDE's definitions, word by word, without crowds; ``found`` best first."""
    used: set[int] = set()
    matched: list[int | None] = []
    for p in found:
        best, at = 0.5, None
        for g, t in enumerate(true):
            if t["category_id"] == p["category_id"] and g not in used and iou(p["bbox"], t["bbox"]) >= best:
                best, at = iou(p["bbox"], t["bbox"]), g
        matched.append(at)
        if at is not None:
            used.add(at)
    kinds, excused = [], set(used)
    for p, at in zip(found, matched):
        if at is not None:
            kinds.append("right")
            continue
        own = {
            g: iou(p["bbox"], t["bbox"]) for g, t in enumerate(true) if t["category_id"] == p["category_id"]
        }
        others = {
            g: iou(p["bbox"], t["bbox"]) for g, t in enumerate(true) if t["category_id"] != p["category_id"]
        }
        if own and 0.1 <= max(own.values()) <= 0.5:
            kinds.append("localization")
            excused.add(max(own, key=own.__getitem__))
        elif others and max(others.values()) >= 0.5:
            kinds.append("class")
            excused.add(max(others, key=others.__getitem__))
        elif any(value >= 0.5 and g in used for g, value in own.items()):
            kinds.append("duplicate")
        elif max([*own.values(), *others.values()], default=0) <= 0.1:
            kinds.append("background")
        else:
            kinds.append("both")
    return kinds, [g not in excused for g in range(len(true))]


@pytest.mark.parametrize("seed", range(30))
def test_kinds_are_those_of_tide(seed):
    content, predictions = random_case(seed)
    for result in matching.read_results(content, predictions):
        true = [a for a in content["annotations"] if a["image_id"] == result.image_id]
        found = sorted(
            (p for p in predictions if p["image_id"] == result.image_id), key=lambda p: -p["score"]
        )
        kinds, missed = reference_kinds(true, found)
        got = errors.classify(result)
        assert got.kinds == kinds and got.missed.tolist() == missed


def test_the_cases_have_every_kind():
    kinds = set()
    for seed in range(30):
        for result in matching.read_results(*random_case(seed)):
            kinds |= set(errors.classify(result).kinds)
    assert kinds == {"right", *errors.WRONG_KINDS}


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_ap50_is_that_of_coco(seed, crowds):
    content, predictions = random_case(seed, num_images=10, crowds=crowds)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    summary = errors.summarize(matching.read_results(content, predictions), {2: "a", 5: "b", 9: "c"})
    assert summary.ap50 == pytest.approx(100 * evaluation.stats[1], abs=1e-6)
    present = sorted({a["category_id"] for a in content["annotations"] if not a["iscrowd"]})
    by_class = evaluation.eval["precision"][0, :, :, 0, -1]
    expected = np.mean([by_class[:, [2, 5, 9].index(c)] for c in present], axis=0)
    assert np.allclose(summary.precision, expected, atol=1e-6)


def one_image(true: list[tuple], found: list[tuple]) -> list[matching.ImageResult]:
    """From (category, box) and (category, box, score)."""
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": c, "bbox": list(b), "iscrowd": 0}
        for i, (c, b) in enumerate(true)
    ]
    predictions = [{"image_id": 1, "category_id": c, "bbox": list(b), "score": s} for c, b, s in found]
    return matching.read_results({"images": [{"id": 1}], "annotations": annotations}, predictions)


BOX, FAR = (0, 0, 10, 10), (50, 50, 10, 10)


@pytest.mark.parametrize(
    ("found", "kind", "cost"),
    [
        ([(1, (0, 6, 10, 10), 0.9)], "localization", 100.0),  # IoU 0.25: a right box in the right place
        ([(2, BOX, 0.9)], "class", 100.0),
        ([(1, BOX, 0.8), (1, BOX, 0.9)], "duplicate", 0.0),  # AP does not see it: all is found before
        ([(1, FAR, 0.9), (1, BOX, 0.8)], "background", 50.0),  # precision 1 of 2 until it is gone
        ([], "missed", 0.0),  # a class that nothing is asked of counts no more
    ],
)
def test_an_error_costs_what_mending_it_adds(found, kind, cost):
    summary = errors.summarize(one_image([(1, BOX)], found), {1: "a", 2: "b"})
    assert summary.counts[kind] == 1 or kind in ("background", "duplicate")
    assert summary.costs[kind] == pytest.approx(cost, abs=0.6)


def test_missed_objects_cost_the_recall():
    summary = errors.summarize(one_image([(1, BOX), (1, FAR)], [(1, BOX, 0.9)]), {1: "a"})
    assert summary.counts["missed"] == 1
    assert summary.costs["missed"] == pytest.approx(100 - summary.ap50)


def test_confusion_counts_every_object_and_every_box():
    true = [(1, BOX), (2, FAR), (1, (20, 20, 10, 10))]
    found = [(1, BOX, 0.9), (1, FAR, 0.8), (2, (80, 0, 9, 9), 0.7), (2, (20, 20, 10, 10), 0.1)]
    matrix = errors.confusion_matrix(one_image(true, found), [1, 2], 0.5)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_the_threshold_is_that_of_the_best_f1():
    found = [(1, BOX, 0.9), (1, FAR, 0.6), (1, (80, 80, 9, 9), 0.3), (1, (80, 0, 9, 9), 0.2)]
    results = one_image([(1, BOX), (1, FAR)], found)
    ranked = matching.ranked_by_class(results, [matching.match_classes(r, r.ious()) for r in results])
    assert matching.best_threshold(ranked) == 0.6


def test_nothing_found_is_no_error_of_the_program():
    summary = errors.summarize(one_image([(1, BOX)], []), {1: "a"})
    assert summary.ap50 == 0 and summary.threshold == 0.5 and summary.confusion.tolist() == [[0, 1], [0, 0]]
    assert errors.summarize(one_image([], []), {1: "a"}).ap50 == 0
