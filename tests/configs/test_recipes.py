"""The recipes hold the numbers of the paper and the official code; every config file loads and is valid."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from updetr_d2 import add_updetr_config
from updetr_d2.tasks import check_config

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))

# Classes, training sets and test sets of fine-tuning.
DATA_SETS = {
    "voc": (20, ("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)),
    "coco": (80, ("coco_2017_train",), ("coco_2017_val",)),
}


def load(name):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_passes_the_checks(path):
    cfg = load(path)
    cfg.MODEL.DEVICE = "cpu"
    check_config(cfg)


@pytest.mark.parametrize(
    "name",
    [
        "pretrain/updetr_r50_imagenet_60ep.yaml",
        "voc/updetr_r50_voc_150ep.yaml",
        "coco/updetr_r50_coco_150ep.yaml",
        "panoptic/updetr_r50_coco_panoptic.yaml",
    ],
)
def test_a_smaller_resnet_is_one_option(name):
    cfg = load(name)
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.DEVICE", "cpu", "MODEL.DETR.ENC_LAYERS", 1])
    cfg.freeze()
    model = build_model(cfg)
    assert model.backbone.output_shape()["res5"].channels == 512
    assert cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 256  # the user's config is left alone


def test_pretraining_recipe_is_the_papers():
    cfg = load("pretrain/updetr_r50_imagenet_60ep.yaml")
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == ("ADAMW", 1e-4, 1e-4)
    # AdamW decays norms and biases too in the official code.
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == 1e-4
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS) == (256, 60, (40,))
    assert cfg.SOLVER.GAMMA == 0.1
    assert cfg.SOLVER.WARMUP_ITERS == 0
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.1)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)
    assert cfg.INPUT.MAX_SIZE_TRAIN == 600
    assert cfg.INPUT.FORMAT == "RGB"


def test_pretraining_model_is_the_papers():
    cfg = load("pretrain/updetr_r50_imagenet_60ep.yaml")
    detr = cfg.MODEL.DETR
    assert (detr.NUM_QUERIES, detr.HIDDEN_DIM, detr.NHEADS, detr.DIM_FEEDFORWARD) == (100, 256, 8, 2048)
    assert (detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DROPOUT, detr.PRE_NORM) == (6, 6, 0.1, True)
    assert detr.NUM_CLASSES == 2
    updetr = cfg.MODEL.UPDETR
    assert (updetr.NUM_PATCHES, updetr.MASK_RATIO, updetr.QUERY_SHUFFLE) == (10, 0.1, False)
    assert updetr.FEATURE_RECON
    assert updetr.FREEZE_BACKBONE
    matcher, criterion = cfg.MODEL.MATCHER, cfg.MODEL.CRITERION
    assert (matcher.COST_CLASS, matcher.COST_BBOX, matcher.COST_GIOU) == (1, 5, 2)
    assert (criterion.CLASS_WEIGHT, criterion.BBOX_WEIGHT, criterion.GIOU_WEIGHT) == (1, 5, 2)
    assert (criterion.FEATURE_WEIGHT, criterion.EOS_COEF) == (1, 0.1)
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]


def test_query_patch_augmentation_is_the_papers():
    patch = load("pretrain/updetr_r50_imagenet_60ep.yaml").INPUT.QUERY_PATCH
    assert (patch.SIZE, patch.MIN_SIZE) == (128, 8)
    assert (patch.COLOR_JITTER_PROB, patch.GRAYSCALE_PROB, patch.BLUR_PROB) == (0.8, 0.2, 0.5)
    assert (patch.BRIGHTNESS, patch.CONTRAST, patch.SATURATION, patch.HUE) == (0.4, 0.4, 0.4, 0.1)
    assert patch.BLUR_SIGMA == (0.1, 2.0)


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("single_query_60ep", {"MODEL.UPDETR.NUM_PATCHES": 1}),
        ("15ep", {"SOLVER.EPOCHS": 15, "SOLVER.EPOCH_STEPS": (10,), "TEST.EVAL_EPOCHS": 5}),
    ],
)
def test_variants_differ_from_the_recipe_in_what_their_name_says(name, differences):
    recipe = flatten(load("pretrain/updetr_r50_imagenet_60ep.yaml"))
    variant = flatten(load(f"pretrain/updetr_r50_imagenet_{name}.yaml"))
    assert {key: value for key, value in variant.items() if recipe[key] != value} == differences


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("no_recon", {"MODEL.UPDETR.FEATURE_RECON": False}),
        ("trainable_cnn", {"MODEL.UPDETR.FREEZE_BACKBONE": False}),
    ],
)
def test_ablations_differ_from_the_short_schedule_in_one_thing(name, differences):
    short = flatten(load("pretrain/updetr_r50_imagenet_15ep.yaml"))
    variant = flatten(load(f"pretrain/updetr_r50_imagenet_{name}_15ep.yaml"))
    assert {key: value for key, value in variant.items() if short[key] != value} == differences
    assert variant["SOLVER.BACKBONE_MULTIPLIER"] == 1.0  # all that trains has the same learning rate


@pytest.mark.parametrize("data", ["voc", "coco"])
@pytest.mark.parametrize(("epochs", "drop"), [(150, 100), (300, 200)])
def test_finetuning_recipes_are_the_papers(data, epochs, drop):
    cfg = load(f"{data}/updetr_r50_{data}_{epochs}ep.yaml")
    assert cfg.MODEL.META_ARCHITECTURE == "DETR"
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == ("ADAMW", 1e-4, 1e-4)
    # 5e-4, which an early README of the official code gave, ruins the result.
    assert cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER == 5e-5
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert epochs == cfg.SOLVER.EPOCHS
    assert (drop,) == cfg.SOLVER.EPOCH_STEPS
    assert (cfg.SOLVER.GAMMA, cfg.SOLVER.WARMUP_ITERS) == (0.1, 0)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.1)
    assert cfg.MODEL.DETR.PRE_NORM
    assert cfg.MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER
    num_classes, train, test = DATA_SETS[data]
    assert num_classes == cfg.MODEL.DETR.NUM_CLASSES
    assert train == cfg.DATASETS.TRAIN
    assert test == cfg.DATASETS.TEST
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is False


@pytest.mark.parametrize("data", ["voc", "coco"])
def test_finetuning_augmentation_is_detrs(data):
    cfg = load(f"{data}/updetr_r50_{data}_150ep.yaml").INPUT
    assert tuple(range(480, 801, 32)) == cfg.MIN_SIZE_TRAIN
    assert (cfg.MAX_SIZE_TRAIN, cfg.MIN_SIZE_TEST, cfg.MAX_SIZE_TEST) == (1333, 800, 1333)
    assert (cfg.FORMAT, cfg.RANDOM_FLIP) == ("RGB", "horizontal")
    crop = cfg.DETR_CROP
    assert (crop.PROB, crop.RESIZE_SIDES, crop.CROP_SIDE_RANGE) == (0.5, (400, 500, 600), (384, 600))


@pytest.mark.parametrize("data", ["voc", "coco"])
@pytest.mark.parametrize("schedule", ["150ep", "300ep"])
def test_updetr_differs_from_its_baseline_in_the_weights_alone(data, schedule):
    baseline = flatten(load(f"{data}/detr_r50_swav_{data}_{schedule}.yaml"))
    recipe = flatten(load(f"{data}/updetr_r50_{data}_{schedule}.yaml"))
    assert {key for key, value in recipe.items() if baseline[key] != value} == {
        "MODEL.WEIGHTS",
        "MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER",
    }


@pytest.mark.parametrize("data", ["voc", "coco"])
def test_supervised_detr_is_as_released(data):
    cfg = load(f"{data}/detr_r50_{data}_300ep.yaml")
    assert not cfg.MODEL.DETR.PRE_NORM
    assert cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER == 1e-5
    assert not cfg.MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER


@pytest.mark.parametrize(
    ("form", "refine", "two_stage"),
    [("", False, False), ("refine_", True, False), ("two_stage_", True, True)],
)
def test_deformable_detr_is_the_papers(form, refine, two_stage):
    cfg = load(f"coco/deformable_detr_{form}r50_coco_50ep.yaml")
    solver, detr, deformable = cfg.SOLVER, cfg.MODEL.DETR, cfg.MODEL.DEFORMABLE
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH) == (2e-4, 1e-4, 32)
    assert (solver.EPOCHS, solver.EPOCH_STEPS, solver.CLIP_GRADIENTS.CLIP_VALUE) == (50, (40,), 0.1)
    assert (solver.BACKBONE_MULTIPLIER, solver.SLOW_MULTIPLIER) == (0.1, 0.1)
    assert solver.SLOW_PARAMETERS == ("sampling_offsets", "reference_points")
    assert (detr.NUM_QUERIES, detr.DIM_FEEDFORWARD, detr.DROPOUT, detr.NUM_CLASSES) == (300, 1024, 0.1, 80)
    assert (detr.ENC_LAYERS, detr.DEC_LAYERS, detr.NHEADS, detr.HIDDEN_DIM) == (6, 6, 8, 256)
    assert (deformable.NUM_LEVELS, deformable.NUM_POINTS) == (4, 4)
    assert (refine, two_stage) == (deformable.BOX_REFINE, deformable.TWO_STAGE)
    assert not deformable.MIXED_SELECTION
    assert not deformable.LOOK_FORWARD_TWICE
    criterion, matcher = cfg.MODEL.CRITERION, cfg.MODEL.MATCHER
    assert (criterion.CLASS_LOSS, criterion.FOCAL_ALPHA, criterion.FOCAL_GAMMA) == ("focal", 0.25, 2)
    assert (criterion.CLASS_WEIGHT, criterion.BBOX_WEIGHT, criterion.GIOU_WEIGHT) == (2, 5, 2)
    assert (matcher.COST_CLASS, matcher.COST_BBOX, matcher.COST_GIOU) == (2, 5, 2)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


def test_dino_is_the_papers():
    cfg = load("coco/dino_r50_4scale_coco_12ep.yaml")
    solver, detr, denoising = cfg.SOLVER, cfg.MODEL.DETR, cfg.MODEL.DENOISING
    assert (solver.BASE_LR, solver.BACKBONE_MULTIPLIER, solver.IMS_PER_BATCH) == (1e-4, 0.1, 16)
    assert (solver.EPOCHS, solver.EPOCH_STEPS, solver.SLOW_PARAMETERS) == (12, (11,), ())
    assert (detr.NUM_QUERIES, detr.DIM_FEEDFORWARD, detr.DROPOUT) == (900, 2048, 0)
    # 100 pairs of a positive and a negative.
    assert (denoising.NUM_QUERIES, denoising.LABEL_NOISE, denoising.BOX_NOISE) == (200, 0.5, 1.0)
    assert (cfg.MODEL.CRITERION.CLASS_WEIGHT, cfg.MODEL.MATCHER.COST_CLASS) == (1, 2)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300


def test_template_is_the_recipe_with_classes_from_the_data():
    recipe = flatten(load("coco/updetr_r50_coco_150ep.yaml"))
    template = flatten(load("custom/updetr_r50_finetune.yaml"))
    changed = {key for key, value in template.items() if recipe[key] != value}
    # Fewer checkpoints and the place of the data; nothing that changes a result.
    assert changed <= {
        "MODEL.DETR.NUM_CLASSES",
        "DATASETS.TRAIN",
        "DATASETS.TEST",
        "SOLVER.CHECKPOINT_EPOCHS",
        "DATALOADER.NUM_WORKERS",
    }
    assert template["MODEL.DETR.NUM_CLASSES"] == 0


def test_one_shot_recipe_is_the_papers():
    cfg = load("oneshot/updetr_r50_voc_300ep.yaml")
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DETR.NUM_CLASSES) == ("OneShotDETR", 1)
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS, cfg.SOLVER.IMS_PER_BATCH) == (300, (200,), 16)
    assert DATA_SETS["voc"][1:] == (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    assert (cfg.DATASETS.ONESHOT.SPLIT, cfg.DATASETS.ONESHOT.NUM_SHOTS) == ("voc", 1)
    assert cfg.INPUT.QUERY_PATCH.SIZE == 128


@pytest.mark.parametrize(
    ("name", "detection"),
    [
        ("updetr_r50_voc_300ep", "voc/updetr_r50_voc_300ep"),
        ("detr_r50_voc_300ep", "voc/detr_r50_swav_voc_300ep"),
        *((f"updetr_r50_coco_split{i}", "coco/updetr_r50_coco_150ep") for i in range(1, 5)),
    ],
)
def test_one_shot_recipes_are_those_of_detection_with_one_class(name, detection):
    recipe = flatten(load(f"oneshot/{name}.yaml"))
    detection = flatten(load(f"{detection}.yaml"))
    assert {key for key, value in recipe.items() if detection[key] != value} == {
        "MODEL.META_ARCHITECTURE",
        "MODEL.DETR.NUM_CLASSES",
        "DATASETS.ONESHOT.SPLIT",
        "TEST.EVAL_EPOCHS",
    }
    assert recipe["DATASETS.ONESHOT.SPLIT"] == name.removeprefix("up").removeprefix("detr_r50_").removesuffix(
        "_300ep"
    )


def test_faster_rcnn_schedules_are_detectron2s():
    voc = load("baselines/faster_rcnn_R_50_C4_voc.yaml").SOLVER
    assert (voc.OPTIMIZER, voc.BASE_LR, voc.IMS_PER_BATCH) == ("SGD", 0.02, 16)
    assert (voc.MAX_ITER, voc.STEPS) == (24_000, (18_000, 22_000))
    three = load("baselines/faster_rcnn_R_50_FPN_coco_3x.yaml").SOLVER
    nine = load("baselines/faster_rcnn_R_50_FPN_coco_9x.yaml").SOLVER
    assert (three.MAX_ITER, three.STEPS) == (270_000, (210_000, 250_000))
    # The drops stay 60k and 20k iterations before the end.
    assert (nine.MAX_ITER, nine.STEPS) == (810_000, (750_000, 790_000))


def flatten(node, prefix=""):
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def test_few_labels_get_a_dense_signal():
    """What docs/FEW_LABELS.md measures."""
    cfg = load("custom/few_label_lite0.yaml")
    assert cfg.MODEL.TRANSFORMER.NAME == "DINOTransformer"
    assert cfg.MODEL.MATCHER.NAME == "IoUMatcher"
    assert (cfg.MODEL.MATCHER.IOU_THRESH, cfg.MODEL.MATCHER.MAX_PER_TARGET) == (0.6, 4)
    deformable = cfg.MODEL.DEFORMABLE
    assert tuple(deformable.IN_FEATURES) == ("res4", "res5")
    assert (deformable.CENTER_RADIUS, deformable.PROPOSAL_NMS_THRESH) == (0.5, 0.7)
    assert (deformable.PROPOSAL_SIZE, deformable.CLASS_PRIOR) == (0.2, 0.1)
    assert deformable.EXACT_VALID_RATIOS
    assert (cfg.MODEL.DENOISING.NUM_QUERIES, cfg.MODEL.DETR.NMS_THRESH) == (60, 0.6)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (8, 300)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER) == (0.001, 0.6)


def test_small_recipes_have_the_rates_that_were_chosen_on_held_out_labels():
    """docs/FEW_LABELS.md has the sweeps of Faster R-CNN, docs/EVIDENCE.md the others."""
    chosen = {
        "custom/faster_rcnn_lite0.yaml": 0.0012,
        "custom/faster_rcnn_lite0_256px.yaml": 0.0006,
        "custom/few_label_lite0_256px.yaml": 0.002,
        "cutouts/detr_lite0_cutouts.yaml": 0.002,
        "cutouts/updetr_lite0_cutouts_detection.yaml": 0.001,
    }
    assert {name: load(name).SOLVER.BASE_LR for name in chosen} == chosen


def test_recipes_of_256_px_are_those_of_128_px_at_twice_the_size():
    changed = {}
    for detector in ("few_label_lite0", "faster_rcnn_lite0"):
        small, large = (flatten(load(f"custom/{detector}{size}.yaml")) for size in ("", "_256px"))
        changed[detector] = {key: value for key, value in large.items() if small[key] != value}
        for key in (
            "INPUT.MIN_SIZE_TRAIN",
            "INPUT.MAX_SIZE_TRAIN",
            "INPUT.MIN_SIZE_TEST",
            "INPUT.MAX_SIZE_TEST",
        ):
            once, twice = (np.array(each[key]) for each in (small, large))
            assert np.all(twice == 2 * once), key
            changed[detector].pop(key)
    assert changed == {
        "few_label_lite0": {
            "MODEL.CRITERION.FOCAL_ALPHA": 0.5,
            "MODEL.CRITERION.CLASS_WEIGHT": 4.0,
            "SOLVER.BASE_LR": 0.002,
            "SOLVER.BACKBONE_MULTIPLIER": 0.3,
        },
        "faster_rcnn_lite0": {"MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128]], "SOLVER.BASE_LR": 0.0006},
    }


@pytest.mark.parametrize("clusters", [False, True])
def test_pre_training_for_few_labels_keeps_what_the_cnn_knows(clusters):
    """What docs/PRETRAINING.md measures: boxes of features, what the frozen CNN sees in them reconstructed."""
    cfg = load(f"custom/few_label_lite0_pretrain{'_clusters' if clusters else ''}.yaml")
    updetr = cfg.MODEL.UPDETR
    assert cfg.MODEL.META_ARCHITECTURE == "ObjectDETR"
    assert (updetr.FREEZE_BACKBONE, updetr.FEATURE_RECON, updetr.TARGET_FEATURE) == (True, True, "res5")
    assert (cfg.MODEL.CRITERION.FEATURE_LOSS, cfg.MODEL.CRITERION.FEATURE_WEIGHT) == ("normalized_mse", 1.0)
    assert (cfg.INPUT.PROPOSALS.MAX_BOXES, cfg.INPUT.QUERY_PATCH.SIZE) == (10, 64)
    assert clusters == cfg.INPUT.PROPOSALS.CLUSTERS and (0 if clusters else 1) == cfg.MODEL.DETR.NUM_CLASSES
    fine_tuned = flatten(load("custom/few_label_lite0.yaml"))
    differs = {key for key, value in flatten(cfg).items() if fine_tuned[key] != value}
    own = {"MODEL.META_ARCHITECTURE", "MODEL.UPDETR.TARGET_FEATURE", "MODEL.DETR.NUM_CLASSES"}
    own |= {"INPUT.QUERY_PATCH.SIZE", "INPUT.PROPOSALS.MAX_BOXES", "INPUT.PROPOSALS.CLUSTERS"}
    assert differs <= own | {"SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"}


def test_the_quickstart_shows_patches_and_trains_its_cnn():
    cfg = load("quickstart/coins_pretrain.yaml")
    updetr = cfg.MODEL.UPDETR
    assert cfg.MODEL.META_ARCHITECTURE == "UPDETR" and (
        updetr.MATCH_WITHIN_GROUPS,
        updetr.PATCH_SIMILARITY,
    ) == (True, True)
    assert (updetr.FREEZE_BACKBONE, updetr.FEATURE_RECON, updetr.NUM_PATCHES) == (False, False, 4)
