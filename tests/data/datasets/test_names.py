"""Names of data sets work straight from the config, and wrong ones say what would work."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from updetr_d2.data.datasets import names
from updetr_d2.data.datasets.names import add_source, ensure_registered, load_dataset_dicts, register_imagenet
from updetr_d2.utils.cache import CACHE_VARIABLE


@pytest.fixture(name="folder")
def folder_of_two(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture(name="catalog")
def restored_catalog():
    """Forget what a test registers."""
    before = set(DatasetCatalog)
    yield DatasetCatalog
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.usefixtures("catalog")
def test_a_folder_is_registered_under_the_string_of_the_config(folder):
    name = f"folder:{folder}"
    for _ in range(2):  # twice does no harm
        ensure_registered([name])
    assert [each["image_id"] for each in DatasetCatalog.get(name)] == ["a.png", "b.png"]
    assert MetadataCatalog.get(name).evaluator_type == "query_patch"


def test_unknown_names_list_the_forms():
    for name in ("flder:/data", "coco_2107_train"):
        with pytest.raises(ValueError, match=f"'{name}'.*folder:DIR"):
            ensure_registered([name])


def test_a_missing_folder_is_an_error_before_training(tmp_path):
    for name in (f"folder:{tmp_path}/nowhere", "folder:"):
        with pytest.raises(ValueError, match="does not exist"):
            ensure_registered([name])
        assert name not in DatasetCatalog


def test_further_forms_take_one_line(catalog, monkeypatch):
    monkeypatch.setattr(names, "_SOURCES", dict(names._SOURCES))
    add_source("toy", form="toy:N", register=lambda name, n: catalog.register(name, lambda: [{}] * int(n)))
    ensure_registered(["toy:3"])
    assert len(DatasetCatalog.get("toy:3")) == 3
    with pytest.raises(ValueError, match="toy:N"):
        ensure_registered(["nothing"])


def register_labelled(catalog, name: str, categories: list[int]) -> None:
    box = {"bbox": [0, 0, 5, 5], "bbox_mode": 0, "iscrowd": 0}
    dicts = [
        {
            "file_name": f"{name}{i}.png",
            "annotations": [{**box, "category_id": c} for c in [category] if c >= 0],
        }
        for i, category in enumerate(categories)
    ]
    catalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], evaluator_type="coco")


def test_data_sets_are_joined_in_order(folder, catalog):
    register_labelled(catalog, "one", [0, 1])
    register_labelled(catalog, "two", [1])
    joined = load_dataset_dicts(["one", "two"], filter_empty=False)
    assert [each["file_name"] for each in joined] == ["one0.png", "one1.png", "two0.png"]
    mixed = load_dataset_dicts(["one", f"folder:{folder}"], filter_empty=False)
    assert [mixed[i]["file_name"] for i in range(4)] == [
        "one0.png",
        "one1.png",
        str(folder / "a.png"),
        str(folder / "b.png"),
    ]
    assert list(mixed) == [mixed[i] for i in range(4)]


def test_images_without_objects_are_left_out_on_demand(catalog):
    register_labelled(catalog, "some_empty", [0, -1, 1])
    assert len(load_dataset_dicts(["some_empty"], filter_empty=True)) == 2
    assert len(load_dataset_dicts(["some_empty"], filter_empty=False)) == 3


def test_empty_data_sets_name_the_key(catalog):
    catalog.register("no_images", lambda: [])
    register_labelled(catalog, "no_objects", [-1])
    for dataset_names in ([], ["no_images"], ["no_objects"]):
        with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
            load_dataset_dicts(dataset_names, filter_empty=True)


def test_imagenet_lies_below_detectron2s_folder_of_data_sets(folder, monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):  # registered by the import; put back at the end
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
        for split in ("train", "val"):
            catalog.pop(f"imagenet_{split}_unlabeled")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    (folder / "ImageNet" / "val" / "n01").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "ImageNet" / "val" / "n01" / "x.JPEG")
    register_imagenet()
    assert [each["image_id"] for each in DatasetCatalog.get("imagenet_val_unlabeled")] == ["n01/x.JPEG"]
    assert MetadataCatalog.get("imagenet_val_unlabeled").evaluator_type == "query_patch"
    with pytest.raises(ValueError, match="ImageNet/train' does not exist"):
        DatasetCatalog.get("imagenet_train_unlabeled")


@pytest.mark.parametrize("folder", ["me@work", "a@b@c", "plain", "@"])
def test_paths_may_hold_the_sign_that_parts_them(tmp_path, folder):
    root = tmp_path / folder
    (root / "images").mkdir(parents=True)
    (root / "a.json").touch()
    location = f"{root}/a.json@{root}/images"
    assert names.split_location(location, 2) == [f"{root}/a.json", f"{root}/images"]
    assert names.split_location(f"{location}@{root}", 3) == [f"{root}/a.json", f"{root}/images", str(root)]
    assert names.split_location("/no/a.json@/no/images", 2) == ["/no/a.json", "/no/images"]
