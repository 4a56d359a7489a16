"""``coco:JSON@FOLDER`` in DATASETS: classes, contiguous ids, and the same repaired labels for all readers."""

import hashlib
import json
import logging
import os
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO

from updetr_d2.data.datasets import coco, coco_dicts
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


def test_dataset_dicts_are_those_of_detectron2s_loader(dataset, tmp_path):
    """They are made without reading the file once more, and kept for the next start."""
    content, write = dataset
    polygon = [1.0, 2.0, 4.0, 2.0, 4.0, 6.0]
    content["images"].reverse()
    more = {"area": 4, "iscrowd": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0.5, 2, 2]}
    content["annotations"] += [
        {"id": 3, **more, "segmentation": [polygon]},
        {"id": 4, **more, "segmentation": {"size": [50, 100], "counts": [10, 5, 4985]}},
        {"id": 5, **more, "keypoints": [1, 2, 2, 3, 4, 0]},
        {"id": 6, **more, "segmentation": [polygon, polygon], "attributes": {"odd": True}},
    ]
    name = write()
    ensure_registered([name])
    expected = load_coco_json(str(tmp_path / "train.json"), str(tmp_path / "images"), "loaded by detectron2")
    MetadataCatalog.remove("loaded by detectron2")
    found = DatasetCatalog.get(name)
    assert found == expected
    assert all(type(each["bbox_mode"]) is BoxMode for image in found for each in image["annotations"])
    assert DatasetCatalog.get(name) is not found, "readers may change what they get"


@pytest.fixture(name="old_file")
def _old_file(dataset, tmp_path):
    """A data set whose file was not changed in the last seconds; returns (name, start again)."""
    _, write = dataset
    name = write()
    path = tmp_path / "train.json"
    os.utime(path, ns=(1, 1))

    def start():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        ensure_registered([name])
        return DatasetCatalog.get(name), MetadataCatalog.get(name).as_dict()

    return path, start


def test_the_second_start_reads_no_json(old_file, monkeypatch):
    _, start = old_file
    first = start()
    monkeypatch.setattr(coco, "read_annotation_file", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(coco, "load_coco_json", lambda *_: pytest.fail("read again"))
    assert start() == first


@pytest.mark.parametrize("change", ["newer", "longer", "copy gone", "damaged", "hostile", "cut"])
def test_what_an_earlier_start_has_found_counts_only_as_long_as_all_is_as_it_was(old_file, change, tmp_path):
    path, start = old_file
    first, metadata = start()
    (kept,) = (tmp_path / "cache" / "coco").glob("*.dicts")
    text = path.read_text()
    if change == "copy gone":
        os.remove(metadata["json_file"])
    elif change == "damaged":
        content = bytearray(kept.read_bytes())
        content[-20] ^= 1
        kept.write_bytes(content)
    elif change == "cut":
        kept.write_bytes(kept.read_bytes()[:60])
    elif change == "hostile":
        trace = tmp_path / "code_was_run"
        evil = pickle.dumps(Hostile(str(trace)))
        kept.write_bytes(coco_dicts._HEADER + hashlib.sha256(evil).digest() + evil)
    else:
        path.write_text(text.replace('"cat"', '"cow"') + " " * (change == "longer"))
        os.utime(path, ns=(1, 1) if change == "longer" else (2, 2))
    second, metadata = start()
    assert second == first
    if change in ("newer", "longer"):
        assert metadata["thing_classes"] == ["cow", "dog"]
    assert not (tmp_path / "code_was_run").exists()


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_with_problems_are_checked_at_each_start(old_file, tmp_path, caplog):
    _, start = old_file
    (tmp_path / "images" / "b.jpg").rename(tmp_path / "b.jpg")
    assert [len(start()[0]) for _ in range(2)] == [1, 1]
    assert caplog.text.count("image file missing") == 2
    (tmp_path / "b.jpg").rename(tmp_path / "images" / "b.jpg")
    assert len(start()[0]) == 2


@pytest.mark.parametrize("stem", ["a" * 250, "ä" * 120, "x" * 200 + " y"])
def test_names_as_long_as_names_may_be(dataset, stem, tmp_path):
    content, write = dataset
    content["annotations"].append({**content["annotations"][0], "id": "text"})  # something to repair
    for _ in range(2):
        name = write(f"{stem}.json")
        ensure_registered([name])
        assert len(DatasetCatalog.get(name)) == 2
        content["annotations"] = content["annotations"][:2]
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
