"""The short cut for annotations that need no repair finds what the long way finds, field by field."""

import copy
import math

import numpy as np
import pytest

from updetr_d2.data.datasets import coco_repair
from updetr_d2.data.datasets.plain_annotations import plain_places

POLYGON = [10, 10, 30, 10, 30, 30.5, 10, 30]
RLE = {"counts": [0, 5000], "size": [50, 100]}
HUGE = 10**400  # JSON's integers have no end; no float holds this one
VALUES = {
    "id": [None, 0, -1, 1, 2, 2.0, "2", "x", True, 2**53, math.nan, [1]],
    "image_id": [None, 1, 2, 3, 2.0, "2", "x", "", True, [1], {}],
    "category_id": [None, 3, 7, 4, 7.0, "7", "x", True, [7]],
    "iscrowd": [None, 0, 1, 2, True, False, "1", 0.0, []],
    "ignore": [None, 0, 1, True, "no"],
    "area": [None, 0, -1, 3.5, "12", True, math.nan, math.inf, HUGE, []],
    "keypoints": [None, [], [1, 2, 2], [1, "2", 2], [math.nan, 1, 1], [True, 1, 1], [HUGE], "x"],
    "bbox": [
        None, [], "x", [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], ["1", "2", "3", "4"], [True, 1, 2, 3],
        [0, 0, 100, 50], [-1, -1, 102, 52], [-1.01, 0, 9, 9], [99, 49, 2, 2], [99, 49, 2.5, 2], [100, 5, 1, 5],
        [-3, 5, 3, 5], [5, 5, 0, 5], [5, 5, 5, -1], [5, 5, math.nan, 5], [5, 5, math.inf, 5],
        [-0.5, 5, 0.25, 5], [1e308, 5, 1e308, 5], [HUGE, -HUGE, 5, 5],
    ],
    "segmentation": [
        None, [], [[]], [POLYGON], [POLYGON, POLYGON[:6]], [POLYGON, []], POLYGON, [POLYGON[:4]], [POLYGON[:7]],
        [[*POLYGON[:-1], None]], [[*POLYGON[:-1], True]], [[*POLYGON[:-1], math.inf]], "x", 7, {}, [None],
        [[*POLYGON[:-2], HUGE, -HUGE]], RLE, [RLE], [POLYGON, RLE], {"counts": [9], "size": [3, 3]},
    ],
}  # fmt: skip


def make_content(num_annotations=8):
    images = [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 100} for i in (1, 2)]
    annotations = [
        {
            "id": i + 1,
            "image_id": 1 + i % 2,
            "category_id": (3, 7)[i % 2],
            "bbox": [10, 10, 20 + i % 9, 8.5],
            "area": 200,
            "iscrowd": 0,
            "segmentation": [POLYGON],
        }
        for i in range(num_annotations)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


@pytest.fixture(name="folder")
def _folder(tmp_path):
    for i in (1, 2):
        (tmp_path / f"{i}.png").touch()
    return tmp_path


def repair(content, folder):
    """What is made of a file, as a text: NaN is unequal to itself."""
    try:
        repaired, report = coco_repair.repair_annotations(
            copy.deepcopy(content), json_file="a.json", image_folder=str(folder)
        )
    except coco_repair.AnnotationError as error:
        return str(error)
    return repr((repaired, report))


def repair_the_long_way(content, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(coco_repair, "plain_places", lambda *_: set())
        patch.setattr(coco_repair, "have_plain_ids", lambda *_: False)
        return repair(content, folder)


@pytest.mark.parametrize("key", VALUES)
def test_each_value_of_a_field_gets_the_same_repair(key, folder, monkeypatch):
    for value in (*VALUES[key], "missing"):
        content = make_content()
        content["annotations"][1][key] = value
        if value == "missing":
            del content["annotations"][1][key]
        assert repair(content, folder) == repair_the_long_way(content, folder, monkeypatch), value


def test_odd_fields_in_any_combination_get_the_same_repair(folder, monkeypatch):
    for seed in range(300):
        rng = np.random.default_rng(seed)
        content = make_content()
        content["images"][0]["id"] = (1, 1, "1", 1.0, "a")[rng.integers(5)]
        content["images"][1]["file_name"] = ("2.png", "2.png", "gone.png")[rng.integers(3)]
        content["categories"][1]["id"] = (7, 7, "7", "dog")[rng.integers(4)]
        for annotation in content["annotations"]:
            for key in rng.choice(list(VALUES), rng.integers(3), replace=False):
                annotation[str(key)] = VALUES[key][rng.integers(len(VALUES[key]))]
        assert repair(content, folder) == repair_the_long_way(content, folder, monkeypatch), seed


def test_an_image_is_not_taken_for_the_one_whose_id_it_was_given(folder, monkeypatch):
    content = make_content()
    content["images"][0]["id"], content["images"][1]["id"] = "a", 1  # become 1 and 2
    for annotation in content["annotations"]:
        annotation["image_id"] = 1
    assert repair(content, folder) == repair_the_long_way(content, folder, monkeypatch)
    repaired, _ = coco_repair.repair_annotations(content, json_file="a.json", image_folder=str(folder))
    assert {annotation["image_id"] for annotation in repaired["annotations"]} == {2}


def test_plain_annotations_are_not_looked_at_one_by_one(folder, monkeypatch):
    looked_at = []

    def repair_fields(annotation, *_):
        looked_at.append(annotation["id"])
        return annotation

    monkeypatch.setattr(coco_repair, "repair_fields", repair_fields)
    content = make_content(num_annotations=3000)
    repair(content, folder)
    assert not looked_at
    content["annotations"][1234]["area"] = None
    repair(content, folder)
    assert 1235 in looked_at and len(looked_at) < 300


def test_masks_of_crowds_are_plain():
    content = make_content()
    crowd = {"iscrowd": 1, "segmentation": dict(RLE)}
    content["annotations"][3] |= crowd
    images = [content["images"][0]] * 8
    assert plain_places(content["annotations"], images) == set(range(8))
    crowd["segmentation"]["size"] = [100, 50]
    assert not plain_places(content["annotations"], images)
