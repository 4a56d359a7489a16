"""Labels in YOLO's and Pascal VOC's format, and exports of annotation tools, are the data that they say."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from helpers import tiny_cfg
from PIL import Image
from tiny_coco import forget_runs
from voc_folder import write_voc_folder

from updetr_d2.cli import import_labels
from updetr_d2.data.datasets.annotation_repair import AnnotationError
from updetr_d2.data.datasets.label_splits import Labels
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.datasets.voc_folder import read_voc_folder, splits_of_voc
from updetr_d2.data.datasets.yolo import label_file, read_yolo
from updetr_d2.evaluation.build import build_dataset_evaluator

WIDTH, HEIGHT = 128, 96
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    yield
    forget_runs(before)


def objects_of(image):
    """(class, XYWH) of an image: whole pixels, so that every format holds them exactly."""
    rng = np.random.default_rng(image)
    return [
        (CLASSES[(image + i) % 3], (*map(int, rng.integers(0, 60, 2)), *map(int, rng.integers(8, 36, 2))))
        for i in range(image % 4)
    ]


def write_yolo(root, images, *, split="train", config=None):
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True)
    for image in images:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / split / f"{image}.jpg")
        lines = [
            f"{CLASSES.index(name)} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
            for name, (x, y, w, h) in objects_of(image)
        ]
        if lines:
            (root / "labels" / split / f"{image}.txt").write_text("\n".join(lines) + "\n")
    names = ", ".join(CLASSES)
    (root / "data.yaml").write_text(
        config or f"path: .\ntrain: images/train\nval: images/val\nnames: [{names}]\n"
    )
    return f"yolo:{root}/data.yaml"


def write_voc(root, images):
    objects = {
        str(image): [(name, (x + 1, y + 1, x + w, y + h), 0) for name, (x, y, w, h) in objects_of(image)]
        for image in images
    }
    write_voc_folder(root, {"train": objects}, size=(WIDTH, HEIGHT))
    return f"voc:{root}@train"


def write_coco(root, images):
    (root / "images").mkdir(parents=True)
    for image in images:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / f"{image}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in images],
        "annotations": [
            {
                "image_id": i,
                "category_id": CLASSES.index(name) + 5,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i in images
            for name, box in objects_of(i)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=5)],
    }
    for number, each in enumerate(content["annotations"], start=1):
        each["id"] = number
    (root / "a.json").write_text(json.dumps(content))
    return f"coco:{root}/a.json@{root}/images"


def ap_by_class(name, folder):
    """AP of predictions that depend on the picture alone: boxes that are off by some pixels, and false ones."""
    ensure_registered([name])
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
    evaluator = build_dataset_evaluator(tiny_cfg("DETR"), name, str(folder))
    evaluator.reset()
    for sample in DatasetCatalog.get(name):
        image = int(os.path.splitext(os.path.basename(sample["file_name"]))[0])
        rng = np.random.default_rng(100 + image)
        found = [*objects_of(image), ("bee", (3, 3, 30, 30))]
        boxes = [
            (x + dx, y + dy, x + w + dx, y + h + dy)
            for (_, (x, y, w, h)), (dx, dy) in zip(found, rng.integers(-4, 5, (len(found), 2)))
        ]
        instances = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
            scores=torch.tensor(rng.random(len(found))),
            pred_classes=torch.tensor([CLASSES.index(each) for each, _ in found]),
        )
        evaluator.process([sample], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_ap_of_each_class_is_that_of_the_same_data_in_coco_s_format(tmp_path):
    images = range(12)
    wanted = ap_by_class(write_coco(tmp_path / "coco", images), tmp_path / "out")
    assert 5 < wanted["AP-ant"] < 95 and wanted["AP-ant"] != wanted["AP-bee"]
    for write in (write_yolo, write_voc):
        name = write(tmp_path / write.__name__, images)
        assert ap_by_class(name, tmp_path / "out") == pytest.approx(wanted, abs=1e-3, nan_ok=True)


def boxes_of(content):
    location = content.write()
    return [each["bbox"] for each in Labels.read(location, option="--labels").content["annotations"]]


def test_yolo_polygons_and_oriented_boxes_become_their_extent(tmp_path):
    name = write_yolo(tmp_path / "y", [0])
    labels = tmp_path / "y" / "labels" / "train" / "0.txt"
    labels.write_text("1 0.25 0.5 0.5 0.5 0.5 0.75\n2 .5 0 .75 .25 .5 .5 .25 .25\n")
    content = Labels.read(name, option="--labels").content
    assert [each["bbox"] for each in content["annotations"]] == [[32, 48, 32, 24], [32, 0, 64, 48]]
    assert content["annotations"][0]["segmentation"] == [[32, 48, 64, 48, 64, 72]]


def test_yolo_keypoints_are_no_polygon(tmp_path):
    config = "train: images/train\nnames: {0: ant, 1: bee, 2: cow}\nkpt_shape: [2, 2]\n"
    name = write_yolo(tmp_path / "y", [0], config=config)
    (tmp_path / "y" / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.5 0.5 0.1 0.1 0.9 0.9\n")
    assert boxes_of(read_yolo(name.removeprefix("yolo:"))) == [[32, 24, 64, 48]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "Line 1 of .*0.txt is '0 0.5 0.5 0.5'"),
        ("ant 0.5 0.5 0.5 0.5", "Line 1 of"),
        ("3 0.5 0.5 0.5 0.5", "the class 3, but data.yaml names 3"),
        ("0.5 0.5 0.5 0.5 0.5", "the class 0.5"),
    ],
)
def test_labels_that_say_nothing_are_refused_with_their_line(tmp_path, line, message):
    name = write_yolo(tmp_path / "y", [0])
    (tmp_path / "y" / "labels" / "train" / "0.txt").write_text(line)
    with pytest.raises(AnnotationError, match=message):
        ensure_registered([name])


def test_paths_of_a_data_yaml(tmp_path):
    """Roboflow's ``../train/images``, a "path" of another machine, a list of images."""
    write_yolo(tmp_path / "y", [1, 2], split="train")
    yaml_file = tmp_path / "y" / "data.yaml"
    (tmp_path / "y" / "list.txt").write_text("images/train/2.jpg\n./images/train/1.jpg\n")
    for path, train in (
        ("/nowhere", "../images/train"),
        (".", "list.txt"),
        (tmp_path / "y", "[images/train]"),
    ):
        yaml_file.write_text(f"path: {path}\ntrain: {train}\nnames: [ant, bee, cow]\n")
        assert len(boxes_of(read_yolo(str(yaml_file)))) == 3
    with pytest.raises(AnnotationError, match="no images for 'val'; its splits: train"):
        read_yolo(f"{yaml_file}@val")
    yaml_file.write_text("train: images/gone\nnames: [ant]\n")
    with pytest.raises(AnnotationError, match="names images/gone"):
        read_yolo(str(yaml_file))


@pytest.mark.parametrize("content", ["", "names: [a]", "names: 3\ntrain: x", "names: {1: a}\ntrain: x", "{"])
def test_what_is_no_data_yaml_is_refused(tmp_path, content):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(AnnotationError, match=r"data\.yaml"):
        read_yolo(str(tmp_path / "data.yaml"))


def test_where_yolo_s_labels_are():
    assert label_file("/images/a/images/train/b.c.jpg") == "/images/a/labels/train/b.c.txt"
    assert label_file("/data/b.jpg") == "/data/b.txt"


def test_voc_images_beside_their_annotations_and_parts_with_the_same_classes(tmp_path):
    """As Roboflow and labelImg write them; the part "valid" shows no cow."""
    write_voc(tmp_path / "v", [2, 6, 4])
    for image, part in ((2, "train"), (6, "train"), (4, "valid")):
        (tmp_path / "flat" / part).mkdir(parents=True, exist_ok=True)
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            name = f"{image}.{suffix}"
            (tmp_path / "v" / folder / name).rename(tmp_path / "flat" / part / name)
    assert splits_of_voc(str(tmp_path / "flat")) == ["train", "valid"]
    train, valid = (read_voc_folder(f"{tmp_path}/flat@{part}") for part in ("train", "valid"))
    assert train.categories == valid.categories
    assert len(boxes_of(train)) == 4
    assert not boxes_of(valid)
    assert len(boxes_of(read_voc_folder(str(tmp_path / "flat")))) == 4
    with pytest.raises(AnnotationError, match="no part 'test'; its parts: train, valid"):
        read_voc_folder(f"{tmp_path}/flat@test")


def test_difficult_objects_of_voc_are_neither_trained_on_nor_counted(tmp_path):
    objects = {"0": [("ant", (1, 1, 20, 20), 1), ("ant", (30, 30, 40, 40), 0)]}
    write_voc_folder(tmp_path / "v", {"train": objects}, size=(WIDTH, HEIGHT))
    content = Labels.read(f"voc:{tmp_path}/v", option="--labels").content
    assert [each["iscrowd"] for each in content["annotations"]] == [1, 0]
    assert [each["bbox"] for each in content["annotations"]] == [[0, 0, 20, 20], [29, 29, 11, 11]]


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    name = write_yolo(tmp_path / "y", [1, 2])
    (tmp_path / "y" / "images" / "train" / "2.jpg").write_bytes(b"no image")
    content = read_yolo(name.removeprefix("yolo:"))
    assert len(boxes_of(content)) == 1
    assert content.num_skipped == 1


def test_import_writes_a_coco_file_for_each_split(tmp_path, capsys):
    write_yolo(tmp_path / "y", [3, 5], split="val")
    name = write_yolo(tmp_path / "y", [1, 2], split="train")
    assert import_labels.main([name, "--output", str(tmp_path / "out")]) == 0
    assert f"coco:{tmp_path}/out/data-train.json@{tmp_path}/y/images/train" in capsys.readouterr().out
    for split, count in (("train", 3), ("val", 4)):
        location = f"{tmp_path}/out/data-{split}.json@{tmp_path}/y/images/{split}"
        labels = Labels.read(location, option="--labels")
        assert labels.class_names == list(CLASSES)
        assert len(labels.objects) == count
    assert import_labels.main([f"{name}@test", "--output", str(tmp_path / "out")]) == 1
    assert "no images for 'test'" in capsys.readouterr().err


def export(root, file_names, *, categories=None):
    """A COCO file of 64x64 images by names that a tool has given them."""
    categories = categories or [{"id": 1, "name": "ant"}]
    images = [{"id": i, "file_name": name, "width": 64, "height": 64} for i, name in enumerate(file_names)]
    box = {"bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0, "category_id": 1}
    annotations = [{"id": i + 1, "image_id": i, **box} for i in range(len(images))]
    path = root / "export.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return f"coco:{path}@{root}/photos"


@pytest.mark.parametrize(
    "file_name",
    [
        "images/train/sub/a b.jpg",
        "C:\\photos\\sub\\a b.jpg",
        "/data/local-files/?d=photos/sub/a%20b.jpg",
        "../../label-studio/data/media/upload/1/sub/a b.jpg",
        "https://host/photos/sub/a%20b.jpg",
    ],
)
def test_names_of_other_machines(tmp_path, file_name):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "sub" / "a b.jpg")
    labels = Labels.read(export(tmp_path, [file_name]), option="--labels")
    assert [image["file_name"] for image in labels.images] == ["sub/a b.jpg"]


def test_label_studio_s_prefix_of_uploads(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.jpg")
    labels = Labels.read(export(tmp_path, ["images/3ba3d3fa-a.jpg"]), option="--labels")
    assert [image["file_name"] for image in labels.images] == ["a.jpg"]


def test_names_that_could_be_of_two_images_are_not_guessed(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / name)
    labels = Labels.read(export(tmp_path, ["train/a.jpg", "val/a.jpg", "val/b.jpg"]), option="--labels")
    assert [image["file_name"] for image in labels.images] == ["b.jpg"]


@pytest.mark.parametrize(("root", "parent", "kept"), [("pests", "pests", False), ("pests", "animals", True)])
def test_roboflow_s_category_above_all_others_is_no_class(tmp_path, root, parent, kept):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.jpg")
    categories = [
        {"id": 0, "name": root, "supercategory": "none"},
        {"id": 1, "name": "ant", "supercategory": parent},
        {"id": 2, "name": "bee", "supercategory": parent},
    ]
    labels = Labels.read(export(tmp_path, ["a.jpg"], categories=categories), option="--labels")
    assert labels.class_names == ["pests"] * kept + ["ant", "bee"]


def test_lvis_names_its_images_by_url_and_says_that_not_all_objects_are_labeled(
    tmp_path, caplog, monkeypatch
):
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco" / "val2017").mkdir()
    images, annotations = [], []
    for number, folder in ((1, "train2017"), (2, "val2017")):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "coco" / folder / f"{number:012d}.jpg")
        url = f"http://images.cocodataset.org/{folder}/{number:012d}.jpg"
        exhaustive = {"neg_category_ids": [], "not_exhaustive_category_ids": [2] * (number - 1)}
        images.append({"id": number, "width": WIDTH, "height": HEIGHT, "coco_url": url, **exhaustive})
        box = {"bbox": [8.0, 8.0, 20.0, 10.0], "area": 200.0, "segmentation": [[8, 8, 28, 8, 28, 18, 8, 18]]}
        annotations.append({"id": number, "image_id": number, "category_id": number, **box})
    categories = [
        {"id": i, "name": name, "synset": f"{name}.n.01", "frequency": "r"}
        for i, name in ((1, "aerosol can"), (2, "bee"))
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "lvis_v1_train.json").write_text(json.dumps(content))
    name = f"coco:{tmp_path}/lvis_v1_train.json@{tmp_path}/coco"
    import_labels.setup_logger(name="updetr_d2")
    monkeypatch.setattr(logging.getLogger("updetr_d2"), "propagate", True)
    assert import_labels.main([name, "--output", str(tmp_path / "labels")]) == 0
    ensure_registered([name])
    dicts = DatasetCatalog.get(name)
    assert [os.path.relpath(each["file_name"], tmp_path / "coco") for each in dicts] == [
        "train2017/000000000001.jpg",
        "val2017/000000000002.jpg",
    ]
    assert [each["annotations"][0]["category_id"] for each in dicts] == [0, 1]
    assert MetadataCatalog.get(name).thing_classes == ["aerosol can", "bee"]
    assert "not all objects labeled, as in LVIS" in caplog.text and "val2017/000000000002.jpg" in caplog.text
