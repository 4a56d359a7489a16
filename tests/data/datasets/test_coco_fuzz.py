"""COCO files of any structure: usable for Detectron2 and pycocotools, or refused in a sentence."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from updetr_d2.data.datasets import coco
from updetr_d2.data.datasets.coco_repair import AnnotationError
from updetr_d2.utils.cache import CACHE_VARIABLE

POLYGON = [10, 10, 30, 10, 30, 30, 10, 30]
# What converters and people write in the place of something else.
VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        7,
        0.5,
        10**30,
        float("nan"),
        float("inf"),
        "",
        "0",
        "7",
        "x",
        "a\0b",
        "1e999",
    ),
    *(
        [],
        [[]],
        {},
        [0],
        [1, 2, 3, 4],
        [0.1, 0.1, 0.2, 0.2],
        ["4", "6", "24", "40"],
        [[4, 6, 28, 46]],
        POLYGON,
    ),
    *(
        [POLYGON, []],
        [None],
        [[None] * 6],
        {"counts": [1, 2], "size": [1, 3]},
        {"counts": "x", "size": [50, 100]},
    ),
    *([{"counts": [0, 5000], "size": [50, 100]}], {"size": [50, 100]}, {"counts": [5000]}, [1, 2, 3, 4, 5]),
)


def make_content() -> dict:
    images = [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 100} for i in (1, 2)]
    annotations = [
        {
            **{
                "id": i + 1,
                "image_id": 1 + i % 2,
                "category_id": (3, 7)[i % 2],
                "bbox": [10, 10, 20 + i, 20],
            },
            **{"area": 400, "iscrowd": 0, "segmentation": [POLYGON], "keypoints": [1, 2, 2]},
        }
        for i in range(4)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog", "supercategory": "animal"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def mutate(content: dict, rng: np.random.Generator) -> dict:
    """One to four values, keys or entries replaced, removed or doubled."""
    for _ in range(rng.integers(1, 4)):
        section = content.get(str(rng.choice(["images", "annotations", "categories"])))
        if rng.random() < 0.05 or not isinstance(section, list) or not section:
            content[str(rng.choice([*content, "x"]))] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            continue
        entries = section if rng.random() < 0.5 else [section[rng.integers(len(section))]]
        entries = [entry for entry in entries if isinstance(entry, dict) and entry]
        kind = rng.random()
        if kind < 0.1:
            section.append(copy.deepcopy(section[rng.integers(len(section))]))
        elif kind < 0.15:
            section[rng.integers(len(section))] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        elif entries:
            key = str(rng.choice(list(entries[0])))
            value = VALUES[rng.integers(len(VALUES))]
            for entry in entries:
                if kind < 0.3:
                    entry.pop(key, None)
                else:
                    entry[key] = copy.deepcopy(value)
    return content


def train_and_evaluate(root, content: dict) -> bool:
    """Whether the file was usable; what Detectron2's loader makes of it must fit the images."""
    (root / "a.json").write_text(json.dumps(content))
    name = f"coco:{root}/a.json@{root}"
    try:
        coco.register_coco(name, name.removeprefix("coco:"))
    except AnnotationError as error:
        assert "\n" not in str(error)
        assert "a.json" in str(error)
        return False
    try:
        metadata = MetadataCatalog.get(name)
        assert all(isinstance(each, str) for each in metadata.thing_classes)
        ids = list(metadata.thing_dataset_id_to_contiguous_id)
        predictions = []
        for sample in DatasetCatalog.get(name):
            for each in sample["annotations"]:
                x, _, width, height = each["bbox"]
                assert 0 <= each["category_id"] < len(metadata.thing_classes)
                assert width > 0 and height > 0 and x + width <= sample["width"] + 1
                category = ids[each["category_id"]]
                predictions.append(
                    {
                        "image_id": sample["image_id"],
                        "category_id": category,
                        "bbox": each["bbox"],
                        "score": 0.5,
                    }
                )
        if predictions:
            with contextlib.redirect_stdout(io.StringIO()):
                truth = COCO(metadata.json_file)
                evaluation = COCOeval(truth, truth.loadRes(predictions), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    return True


@pytest.fixture(name="root")
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    for i in (1, 2):
        Image.new("RGB", (100, 50)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("first", [0, pytest.param(100, marks=pytest.mark.long)])
def test_files_of_any_structure(root, first):
    assert train_and_evaluate(root, make_content())
    seeds = range(first, 100) if first == 0 else range(first, 1000)
    usable = [train_and_evaluate(root, mutate(make_content(), np.random.default_rng(seed))) for seed in seeds]
    assert 0.2 < np.mean(usable) < 0.9  # neither too tame nor too wild to tell anything


MASKS = {
    "none": None,
    "empty": [],
    "an empty polygon": [[]],
    "two points": [[4.0, 6.0, 28.0, 46.0]],
    "text": "mask",
    "RLE without size": {"counts": [0, 5000]},
    "RLE of another size": {"counts": [0, 12], "size": [3, 4]},
    "RLE too short": {"counts": [0, 10], "size": [50, 100]},
    "RLE of garbage": {"counts": "~~~", "size": [50, 100]},
    "numbers": 7,
    "not finite": [[float("nan")] * 6],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_what_is_no_mask_never_costs_a_box(root, mask):
    content = make_content()
    for annotation in content["annotations"][::2]:
        annotation["segmentation"] = mask
    (root / "a.json").write_text(json.dumps(content))
    name = f"coco:{root}/a.json@{root}"
    coco.register_coco(name, name.removeprefix("coco:"))
    try:
        annotations = [each for sample in DatasetCatalog.get(name) for each in sample["annotations"]]
        assert len(annotations) == 4
        assert sum("segmentation" in each for each in annotations) == 2
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "mask",
    [
        POLYGON,
        [POLYGON, []],
        [{"counts": [0, 5000], "size": [50, 100]}],
        {"counts": [0, 5000], "size": [50, 100]},
    ],
    ids=["flat list", "one of two empty", "list of RLEs", "RLE"],
)
def test_masks_in_other_forms_are_read(root, mask):
    content = make_content()
    content["annotations"][0]["segmentation"] = mask
    (root / "a.json").write_text(json.dumps(content))
    path, _ = coco.usable_annotation_file(str(root / "a.json"), str(root))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
    area = truth.annToMask(truth.anns[1]).sum()
    assert area == (5000 if "counts" in str(mask) else 400)


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "corners"),
        (lambda x, y, w, h: [x / 100, y / 50, w / 100, h / 50], "fractions"),
        (lambda x, y, w, h: [x, y, w, h, 30.0], "five numbers"),
    ],
    ids=["XYXY", "fractions", "rotated"],
)
def test_boxes_of_another_format_are_named(root, convert, said):
    content = make_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = convert(70, 20, 25, 25)
    (root / "a.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=said):
        coco.usable_annotation_file(str(root / "a.json"), str(root))


def test_paths_of_windows_and_of_urls_are_found(root):
    (root / "a b").mkdir()
    (root / "1.png").rename(root / "a b" / "1.png")
    content = make_content()
    content["images"][0]["file_name"] = "a%20b\\1.png"
    (root / "a.json").write_text(json.dumps(content))
    path, _ = coco.usable_annotation_file(str(root / "a.json"), str(root))
    with open(path) as file:
        assert json.load(file)["images"][0]["file_name"] == "a b/1.png"
