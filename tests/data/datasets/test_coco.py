"""``coco:JSON@FOLDER`` in DATASETS: classes, contiguous ids, and the same repaired labels for all readers."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image
from pycocotools.coco import COCO

from updetr_d2.data.datasets.coco import register_coco
from updetr_d2.data.datasets.names import ensure_registered


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Files of a data set with category ids 3 and 7, listed in the wrong order; returns (content, write)."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (100, 50)).save(tmp_path / "images" / name)
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 50, "width": 100},
            {"id": 2, "file_name": "b.jpg", "height": 50, "width": 100},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    names = []

    def write(file_name="train.json"):
        path = tmp_path / file_name
        path.write_text(json.dumps(content))
        names.append(f"coco:{path}@{tmp_path / 'images'}")
        return names[-1]

    yield content, write
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_classes_are_sorted_and_contiguous(dataset):
    _, write = dataset
    name = write()
    ensure_registered([name])
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco"
    assert [d["annotations"][0]["category_id"] for d in DatasetCatalog.get(name)] == [1, 0]


def test_good_file_is_copied_as_it_is(dataset, tmp_path, caplog):
    _, write = dataset
    name = write()
    with caplog.at_level(logging.WARNING):
        ensure_registered([name])
    with open(MetadataCatalog.get(name).json_file) as copy:
        assert copy.read() == (tmp_path / "train.json").read_text()
    assert not caplog.records


@pytest.mark.parametrize("change", ["emptied", "cut", "removed", "other images"])
def test_annotations_that_change_during_the_run_do_not_change_the_run(dataset, tmp_path, change):
    content, write = dataset
    name = write()
    ensure_registered([name])
    before = DatasetCatalog.get(name)
    path = tmp_path / "train.json"
    if change == "removed":
        path.unlink()
    elif change == "other images":
        path.write_text(json.dumps(content | {"images": content["images"][1:], "annotations": []}))
    else:
        path.write_text("" if change == "emptied" else path.read_text()[:50])
    assert DatasetCatalog.get(name) == before
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
    assert sorted(evaluator._coco_api.imgs) == [1, 2]
    assert sorted(evaluator._coco_api.anns) == [1, 2]


def test_without_a_cache_the_file_itself_is_read(dataset, tmp_path, monkeypatch, caplog):
    _, write = dataset
    name = write()
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "train.json"))  # a file, not a folder
    ensure_registered([name])
    assert MetadataCatalog.get(name).json_file == str(tmp_path / "train.json")
    assert "do not change it during the run" in caplog.text


def test_evaluator_and_loader_read_the_same_repaired_file(dataset, tmp_path, caplog):
    content, write = dataset
    content["annotations"].append({"id": 3, "image_id": 1, "category_id": 3, "bbox": [0, 0, 0, 9]})
    content["images"].append({"id": 9, "file_name": "gone.jpg", "height": 5, "width": 5})
    name = write()
    with caplog.at_level(logging.WARNING):
        ensure_registered([name])
    json_file = MetadataCatalog.get(name).json_file
    assert json_file.startswith(str(tmp_path / "cache"))
    assert sorted(COCO(json_file).anns) == [1, 2]
    assert sorted(COCO(json_file).imgs) == [1, 2]
    assert [len(d["annotations"]) for d in DatasetCatalog.get(name)] == [1, 1]
    assert len(caplog.records) == 1
    assert "gone.jpg" in caplog.text
    assert json.loads((tmp_path / "train.json").read_text()) == content, "the user's file is left alone"


def test_file_with_an_at_sign_in_its_path(dataset):
    _, write = dataset
    name = write("user@host.json")
    ensure_registered([name])
    assert len(DatasetCatalog.get(name)) == 2


@pytest.mark.parametrize("location", ["/data/train.json", "@/data/images", "/data/train.json@"])
def test_name_of_another_form_is_explained(location):
    with pytest.raises(ValueError, match=r"as in coco:/data/train\.json@/data/images"):
        register_coco(f"coco:{location}", location)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere, which does not exist"):
        ensure_registered([f"coco:{tmp_path}/train.json@{tmp_path}/nowhere"])
