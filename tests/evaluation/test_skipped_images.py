"""What evaluation could not read is not counted as missed: a perfect detector has 100 on the rest."""

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
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.datasets.panoptic_annotations import read_panoptic_png, rgb_to_ids
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.engine import trainer
from updetr_d2.engine.trainer import check_test_sets
from updetr_d2.tasks import build_evaluator, build_test_loader
from updetr_d2.utils.cache import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def clean_up(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    yield
    forget_runs(before)


def evaluate_perfect_detector(cfg, name, folder) -> dict:
    truth = {each["image_id"]: each["annotations"] for each in DatasetCatalog.get(name)}
    evaluator = build_evaluator(cfg, name, str(folder))
    evaluator.reset()
    for batch in build_test_loader(cfg, name):
        for sample in batch:
            boxes = np.array([each["bbox"] for each in truth[sample["image_id"]]], np.float32).reshape(-1, 4)
            if truth[sample["image_id"]] and truth[sample["image_id"]][0]["bbox_mode"] == 1:
                boxes[:, 2:] += boxes[:, :2]
            found = Instances((sample["height"], sample["width"]))
            found.pred_boxes = Boxes(torch.from_numpy(boxes))
            found.scores = torch.ones(len(boxes))
            found.pred_classes = torch.tensor([each["category_id"] for each in truth[sample["image_id"]]])
            evaluator.process([sample], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_coco_counts_the_images_that_were_evaluated(tmp_path, caplog, damaged):
    name = write_tiny_coco(tmp_path)
    ensure_registered([name])
    if damaged > 0:
        (tmp_path / "images" / "1.png").write_bytes(b"broken")
    if damaged > 1:
        Image.new("RGB", (10, 10)).save(tmp_path / "images" / "2.png")  # not of the size in the file
    cfg = tiny_cfg(
        "DETR", "DATASETS.TRAIN", (name,), "DATALOADER.NUM_WORKERS", 0, "DATALOADER.READ_RETRIES", 0
    )
    with caplog.at_level(logging.WARNING, "updetr_d2"):
        results = evaluate_perfect_detector(cfg, name, tmp_path / "out")
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert (f"{damaged} of 4 images were not evaluated" in caplog.text) == (damaged > 0)


def test_voc_counts_the_images_that_were_evaluated(voc, tmp_path):
    name = "voc_2007_test"
    ensure_registered([name])
    (tmp_path / "VOC2007" / "JPEGImages" / "000011.jpg").write_bytes(b"broken")
    cfg = tiny_cfg(
        "DETR", "DATASETS.TRAIN", (name,), "DATALOADER.NUM_WORKERS", 0, "DATALOADER.READ_RETRIES", 0
    )
    results = evaluate_perfect_detector(cfg, name, tmp_path / "out")
    assert results["bbox"]["AP-dog"] == pytest.approx(100)
    assert results["bbox"]["AP-person"] == pytest.approx(100)


ODD_XML = {
    "no difficult": ("<difficult>0</difficult>", ""),
    "difficult as a word": ("<difficult>0<", "<difficult>Unspecified<"),
    "float coordinates": ("<xmin>2<", "<xmin>2.4000001<"),
    "names with spaces": ("<name>car<", "<name> car <"),
    "no size": ("size>", "nothing>"),
    "size 0": ("<width>120<", "<width>0<"),
}


@pytest.mark.parametrize("change", ODD_XML.values(), ids=ODD_XML)
def test_odd_files_of_voc_are_read_and_evaluated(voc, tmp_path, change):
    name = "voc_2007_test"
    ensure_registered([name])
    expected = DatasetCatalog.get(name)
    for file in (tmp_path / "VOC2007" / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace(*change))
    listed = tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    listed.write_text("".join(f"{line}  1\r\n" for line in listed.read_text().split()))
    found = DatasetCatalog.get(name)
    for one, other in zip(expected, found, strict=True):
        assert (one["height"], one["width"]) == (other["height"], other["width"])
        boxes = [[each["bbox"] for each in sample["annotations"]] for sample in (one, other)]
        np.testing.assert_allclose(*boxes, atol=0.5)
    cfg = tiny_cfg("DETR", "DATASETS.TRAIN", (name,), "DATALOADER.NUM_WORKERS", 0)
    assert evaluate_perfect_detector(cfg, name, tmp_path / "out")["voc_bbox"]["AP50"] > 0


def test_a_class_that_voc_does_not_have_is_named(voc, tmp_path):
    file = tmp_path / "VOC2007" / "Annotations" / "000011.xml"
    file.write_text(file.read_text().replace("<name>car<", "<name>Car<"))
    cfg = tiny_cfg("DETR", "DATASETS.TEST", ("voc_2007_test",))
    with pytest.raises(ValueError, match=r"000011\.xml names the class 'Car'"):
        check_test_sets(cfg)


def test_what_an_evaluator_cannot_read_is_said_at_the_start(tmp_path):
    name = write_tiny_coco(tmp_path)
    ensure_registered([name])
    with open(MetadataCatalog.get(name).json_file, "w") as file:
        json.dump({"images": []}, file)
    with pytest.raises(ValueError, match=r"in DATASETS\.TEST cannot be used"):
        check_test_sets(tiny_cfg("DETR", "DATASETS.TEST", (name,)))


IDS = np.arange(12).reshape(3, 4) * 20


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "16-bit"])
def test_ids_of_panoptic_pngs_of_every_mode(tmp_path, mode):
    path = tmp_path / "a.png"
    zeros = np.zeros_like(IDS)
    channels = {
        "RGB": (IDS, zeros, zeros),
        "RGBA": (IDS, zeros, zeros, zeros + 255),
        "LA": (IDS, zeros + 255),
    }
    ids = IDS
    if mode in channels:
        image = Image.fromarray(np.stack(channels[mode], -1).astype(np.uint8), mode=mode)
    elif mode == "16-bit":
        ids = IDS + 1000
        image = Image.fromarray(ids.astype(np.uint16))
    else:
        image = Image.fromarray(IDS.astype(np.uint8), mode="L")
        if mode == "P":
            image = Image.fromarray(IDS.astype(np.uint8), mode="P")
            image.putpalette([value for i in range(256) for value in (i, 0, 0)])
    image.save(path)
    np.testing.assert_array_equal(rgb_to_ids(read_panoptic_png(str(path))), ids)


def test_a_damaged_panoptic_png_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnusableImageError, match=r"a\.png"):
        read_panoptic_png(str(tmp_path / "a.png"))


def test_results_of_data_sets_with_long_names_have_folders(tmp_path, monkeypatch):
    """The name of a data set holds its paths, which may be longer than one name of a folder."""
    folders = []
    monkeypatch.setattr(trainer, "build_evaluator", lambda _cfg, _name, folder: folders.append(folder))
    cfg = tiny_cfg("DETR", "OUTPUT_DIR", str(tmp_path))
    for number in range(2):
        trainer.UPDETRTrainer.build_evaluator(cfg, f"coco:/{'p' * 120}/{'q' * 120}/a.json@/images{number}")
    for folder in folders:
        os.makedirs(os.path.join(folder, "f" * 60))  # evaluators make names of their own in it
    assert len(set(folders)) == 2
