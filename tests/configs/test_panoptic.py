"""The segmentation recipes hold the numbers of the papers, and their two steps fit together."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from updetr_d2 import add_updetr_config

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.mark.parametrize("method", ["detr", "updetr"])
class TestRecipes:
    def test_mask_head_trains_for_25_epochs_on_a_frozen_detector(self, method):
        cfg = load(f"panoptic/{method}_r50_coco_panoptic.yaml")
        assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS) == (25, (15,))
        assert cfg.SOLVER.BASE_LR == 1e-4
        assert cfg.MODEL.META_ARCHITECTURE == "PanopticDETR"
        assert cfg.MODEL.MASK_HEAD.FREEZE_DETR
        assert cfg.MODEL.DETR.NUM_CLASSES == 133
        assert cfg.MODEL.MASK_HEAD.IN_FEATURES == ["res4", "res3", "res2"]
        assert (cfg.MODEL.CRITERION.MASK_WEIGHT, cfg.MODEL.CRITERION.DICE_WEIGHT) == (1, 1)
        head = cfg.MODEL.MASK_HEAD
        assert (head.SCORE_THRESHOLD, head.MASK_THRESHOLD, head.MIN_SEGMENT_AREA) == (0.85, 0.5, 4)
        assert head.TRAIN_NUM_POINTS == 0  # the exact losses
        assert head.FEATURE_SCALE == 1

    def test_attention_is_normalised_as_in_the_code_that_the_weights_come_from(self, method):
        for suffix in ("panoptic", "panoptic_joint", "instance"):
            head = load(f"panoptic/{method}_r50_coco_{suffix}.yaml").MODEL.MASK_HEAD
            assert head.SOFTMAX_OVER_HEADS is (method == "detr")

    def test_both_steps_have_the_same_detector(self, method):
        boxes = load(f"panoptic/{method}_r50_coco_panoptic_boxes.yaml").MODEL.DETR
        masks = load(f"panoptic/{method}_r50_coco_panoptic.yaml").MODEL.DETR
        assert all(boxes[key] == masks[key] for key in boxes if key != "REQUIRE_PRETRAINED_TRANSFORMER")

    def test_joint_training_trains_everything_for_the_long_schedule(self, method):
        cfg = load(f"panoptic/{method}_r50_coco_panoptic_joint.yaml")
        assert not cfg.MODEL.MASK_HEAD.FREEZE_DETR
        assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS) == (300, (200,))

    def test_instance_segmentation_is_on_coco_things(self, method):
        cfg = load(f"panoptic/{method}_r50_coco_instance.yaml")
        assert cfg.MODEL.DETR.NUM_CLASSES == 80
        assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
