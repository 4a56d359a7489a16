"""How well patches are found: counted as one would by hand, beside what not looking gives."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from benchmarks.quickstart import patches
from benchmarks.quickstart.patches import PatchResults, Picture
from updetr_d2.config.files import get_config

CONFIG = "quickstart/coins_pretrain.yaml"


class FindsColors:
    """Looks for the color of each patch: a box around its pixels, score 0.9; without any, the corner, 0.1."""

    cfg = get_config(CONFIG)

    def __call__(self, image, shown):
        boxes, scores = [], []
        for patch in shown:
            rows, columns = np.nonzero((image == patch[24, 24]).all(axis=-1))
            found = len(rows) > 0
            boxes.append(
                [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if found else [0, 0, 10, 10]
            )
            scores.append(0.9 if found else 0.1)
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor(boxes).float())
        instances.scores = torch.tensor(scores)
        return SimpleNamespace(instances=instances)


def picture(*objects: tuple[int, int, int, int, int]) -> Picture:
    """A picture with squares: gray value and box."""
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    for value, x0, y0, x1, y1 in objects:
        image[y0:y1, x0:x1] = value
    return Picture(image, np.array([box for _, *box in objects]))


def test_what_is_found_is_compared_with_its_own_box():
    test = [picture((50, 0, 0, 20, 20), (90, 40, 40, 80, 80)), picture((130, 60, 0, 90, 30))]
    results = patches.evaluate(FindsColors(), test, [picture((200, 0, 0, 30, 30))])
    np.testing.assert_allclose(results.ious, 1.0)
    np.testing.assert_allclose(results.scores, 0.9)
    np.testing.assert_allclose(results.scores_absent, 0.1)
    # What is absent is "found" in the corner, a quarter of the first box.
    np.testing.assert_allclose(results.ious_unseen, [0.25, 0, 0])


def test_the_best_single_box():
    """Half of the boxes are one, the others touch it nowhere."""
    boxes = np.array([[0, 0, 10, 10]] * 3 + [[50, 50, 60, 60], [70, 0, 80, 10], [0, 70, 10, 80]])
    pictures = [Picture(np.zeros((100, 100, 3), np.uint8), boxes[:3])]
    pictures += [Picture(np.zeros((100, 100, 3), np.uint8), box[None]) for box in boxes[3:]]
    assert patches.best_fixed_iou(pictures) == pytest.approx(0.5)


def test_numbers_in_percent():
    results = PatchResults(
        ious=np.array([0.9, 0.7, 0.2, 0.6]),
        scores=np.array([0.8, 0.4, 0.3, 0.9]),
        ious_unseen=np.array([0.1, 0.3, 0.0, 0.0]),
        scores_absent=np.array([0.1, 0.6]),
        iou_fixed=0.125,
    )
    content = results.to_json()
    assert content["patches"] == 4 and content["mIoU"] == pytest.approx(60) and content["recall50"] == 75
    assert content["mIoU_shown_other_things"] == pytest.approx(10) and content["mIoU_best_fixed_box"] == 12.5
    assert content["found_right"] == pytest.approx(200 / 3) and content["found_wrong"] == 0
    assert content["found_absent"] == 50 and content["median_score_right"] == pytest.approx(80)


def test_pictures_without_objects_are_no_test(tmp_path):
    images = []
    for i in range(2):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 30})
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 10, 12], "area": 120, "iscrowd": 0}
    content = {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (read,) = patches.read_pictures(f"{tmp_path}/a.json@{tmp_path}")
    assert read.boxes.tolist() == [[5, 6, 15, 18]] and read.image.shape == (30, 40, 3)
