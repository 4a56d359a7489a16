"""Every config file builds its model, R-50 included, and runs one training and one inference step."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from updetr_d2 import add_updetr_config

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))
SIZE = 64  # px of the random images


@pytest.fixture(params=RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def cfg(request) -> CfgNode:
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(str(request.param))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or 3  # 0: from a data set
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES or 3
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    if cfg.MODEL.META_ARCHITECTURE in ("UPDETR", "ObjectDETR"):
        cfg.INPUT.QUERY_PATCH.SIZE = 64
    return cfg


def random_sample(cfg: CfgNode, *, is_train: bool) -> dict:
    sample = {"image": torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8), "height": 50, "width": 50}
    num_objects = 2
    if cfg.MODEL.META_ARCHITECTURE in ("UPDETR", "ObjectDETR", "OneShotDETR"):
        counts = {"UPDETR": cfg.MODEL.UPDETR.NUM_PATCHES, "ObjectDETR": 2, "OneShotDETR": 1}
        num_objects = counts[cfg.MODEL.META_ARCHITECTURE]
        side = cfg.INPUT.QUERY_PATCH.SIZE
        sample["patches"] = torch.randint(256, (num_objects, 3, side, side), dtype=torch.uint8)
    if is_train:
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(num_objects, 1)
        instances = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.zeros(num_objects, dtype=torch.int64)
        if cfg.MODEL.MASK_ON:
            instances.gt_masks = BitMasks(torch.ones(num_objects, SIZE, SIZE, dtype=torch.bool))
        sample["instances"] = instances
    return sample


def test_model_trains_and_infers(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model([random_sample(cfg, is_train=True) for _ in range(2)])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    with torch.no_grad():
        (output,) = model([random_sample(cfg, is_train=False)])
    instances = output["instances"]
    assert instances.image_size == (50, 50)
    assert torch.isfinite(instances.pred_boxes.tensor).all()
    if cfg.MODEL.META_ARCHITECTURE == "DETR":
        if cfg.MODEL.CRITERION.CLASS_LOSS == "softmax":
            assert len(instances) == cfg.MODEL.DETR.NUM_QUERIES
        else:  # the best pairs of query and class, some of which NMS may drop
            assert 0 < len(instances) <= cfg.TEST.DETECTIONS_PER_IMAGE
