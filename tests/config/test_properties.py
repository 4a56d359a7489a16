"""Any valid configuration builds, trains a step with finite losses and predicts boxes inside the image."""

import itertools
import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import tiny_cfg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.engine.trainer import UPDETRTrainer
from updetr_d2.tasks import build_test_loader, check_config, task_of
from updetr_d2.utils.cache import CACHE_VARIABLE

# Backbones whose features the models can use, with the options that choose them.
PATCHIFY = ()
RESNET = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
)


@pytest.fixture(name="root", scope="module")
def data_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("properties")
    before = set(DatasetCatalog)
    write_tiny_coco(root, masks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(root / "cache"))
        yield root
    forget_runs(before)


def fractions(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def ranges(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: tuple(sorted(pair)))


def sides(low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(low, high), min_size=1, max_size=3).map(tuple)


SOLVER = {
    "SOLVER.IMS_PER_BATCH": st.integers(1, 3),
    "SOLVER.OPTIMIZER": st.sampled_from(["ADAMW", "SGD"]),
    "SOLVER.BASE_LR": fractions(1e-6, 1e-3),
    "SOLVER.BACKBONE_MULTIPLIER": fractions(),
    "SOLVER.WEIGHT_DECAY": fractions(0, 0.1),
    "SOLVER.CLIP_GRADIENTS.ENABLED": st.booleans(),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": st.sampled_from(["full_model", "norm", "value"]),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": fractions(0.01, 10),
    "SOLVER.LR_SCHEDULER_NAME": st.sampled_from(["WarmupMultiStepLR", "WarmupCosineLR"]),
    "SOLVER.AMP.ENABLED": st.booleans(),
    "DATALOADER.ASPECT_RATIO_GROUPING": st.booleans(),
    "SEED": st.integers(0, 2**31),
}
INPUT = {
    "INPUT.FORMAT": st.sampled_from(["RGB", "BGR"]),
    "INPUT.MIN_SIZE_TRAIN": sides(17, 60),
    "INPUT.MAX_SIZE_TRAIN": st.integers(20, 90),
    "INPUT.MIN_SIZE_TEST": st.integers(17, 60),
    "INPUT.MAX_SIZE_TEST": st.integers(20, 90),
    "INPUT.QUERY_PATCH.SIZE": st.integers(16, 48),
}
MODEL = {
    "MODEL.DETR.ENC_LAYERS": st.integers(0, 2),
    "MODEL.DETR.DEC_LAYERS": st.integers(1, 3),
    "MODEL.DETR.DIM_FEEDFORWARD": st.integers(1, 40),
    # With more of it, norms of a few channels see one value in all of them, and gradients overflow.
    "MODEL.DETR.DROPOUT": fractions(0, 0.5),
    "MODEL.DETR.PRE_NORM": st.booleans(),
    "MODEL.DETR.DEEP_SUPERVISION": st.booleans(),
    "MODEL.DETR.IN_FEATURE": st.sampled_from(["res4", "res5"]),
    "MODEL.MATCHER.COST_CLASS": fractions(0.1, 9),
    "MODEL.MATCHER.COST_BBOX": fractions(0, 9),
    "MODEL.MATCHER.COST_GIOU": fractions(0, 9),
    "MODEL.CRITERION.CLASS_WEIGHT": fractions(0, 9),
    "MODEL.CRITERION.BBOX_WEIGHT": fractions(0, 9),
    "MODEL.CRITERION.GIOU_WEIGHT": fractions(0, 9),
    "MODEL.CRITERION.FEATURE_WEIGHT": fractions(0, 9),
    "MODEL.CRITERION.EOS_COEF": fractions(0.01, 1),
}
PRETRAINING = {
    "MODEL.DETR.NUM_CLASSES": st.integers(1, 2),
    "MODEL.UPDETR.MASK_RATIO": fractions(0, 0.99),
    "MODEL.UPDETR.QUERY_SHUFFLE": st.booleans(),
    "MODEL.UPDETR.FEATURE_RECON": st.booleans(),
    "MODEL.UPDETR.FREEZE_BACKBONE": st.booleans(),
    "MODEL.UPDETR.ATTENTION_MASK": st.booleans(),
    "MODEL.UPDETR.MATCH_WITHIN_GROUPS": st.booleans(),
    "INPUT.QUERY_PATCH.MIN_SIZE": st.integers(1, 8),
    "INPUT.QUERY_PATCH.COLOR_JITTER_PROB": fractions(),
    "INPUT.QUERY_PATCH.GRAYSCALE_PROB": fractions(),
    "INPUT.QUERY_PATCH.BLUR_PROB": fractions(),
    "INPUT.QUERY_PATCH.HUE": fractions(0, 0.5),
    "INPUT.QUERY_PATCH.CONTRAST": fractions(0, 2),
}
DETECTION = {
    "MODEL.DETR.NUM_QUERIES": st.integers(1, 12),
    "MODEL.BACKBONE.FREEZE_AT": st.integers(0, 5),
    "INPUT.DETR_CROP.PROB": fractions(),
    "INPUT.DETR_CROP.RESIZE_SIDES": sides(20, 60),
    "INPUT.DETR_CROP.CROP_SIDE_RANGE": ranges(10, 60),
    "INPUT.RANDOM_FLIP": st.sampled_from(["horizontal", "vertical", "none"]),
}
ONE_SHOT = {
    **DETECTION,
    "DATASETS.ONESHOT.KEEP_IMAGES_WITH_UNSEEN": st.booleans(),
    "DATASETS.ONESHOT.SAME_IMAGE": st.just(True),  # with False an image needs another one of its class
    "DATASETS.ONESHOT.CONTEXT_MARGIN": fractions(),
    "DATASETS.ONESHOT.ABSENT_SHARE": fractions(),
    "DATASETS.ONESHOT.NUM_SHOTS": st.integers(1, 3),
    "TEST.ONESHOT.NUM_QUERIES": st.integers(1, 2),
}
MASKS = {
    "MODEL.MASK_HEAD.FREEZE_DETR": st.booleans(),
    "MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS": st.booleans(),
    "MODEL.MASK_HEAD.TRAIN_NUM_POINTS": st.sampled_from([0, 1, 30]),
    "MODEL.MASK_HEAD.OVERSAMPLE_RATIO": fractions(1, 4),
    "MODEL.MASK_HEAD.IMPORTANCE_SAMPLE_RATIO": fractions(),
    "MODEL.MASK_HEAD.MASK_THRESHOLD": fractions(),
    "MODEL.MASK_HEAD.SCORE_THRESHOLD": fractions(),
    "MODEL.CRITERION.MASK_WEIGHT": fractions(0, 9),
    "MODEL.CRITERION.DICE_WEIGHT": fractions(0, 9),
}


@st.composite
def configurations(draw) -> tuple[str, list]:
    """A meta-architecture and the options of a valid configuration for it."""
    name = draw(st.sampled_from(["UPDETR", "DETR", "OneShotDETR", "PanopticDETR"]))
    own = {"UPDETR": PRETRAINING, "DETR": DETECTION, "OneShotDETR": ONE_SHOT}.get(name, DETECTION | MASKS)
    drawn = draw(st.fixed_dictionaries(SOLVER | INPUT | MODEL | own))
    options = list(itertools.chain(*drawn.items()))
    if name == "PanopticDETR":
        heads, width = 8, 128
        options += [*RESNET, "MODEL.MASK_ON", True]
    else:
        heads = draw(st.sampled_from([1, 2, 4]))
        width = 4 * heads * draw(st.integers(1, 3))
        options += draw(st.sampled_from([PATCHIFY, PATCHIFY, RESNET]))
    options += ["MODEL.DETR.NHEADS", heads, "MODEL.DETR.HIDDEN_DIM", width]
    if name == "UPDETR":
        num_patches, group = draw(st.integers(1, 5)), draw(st.integers(1, 4))
        options += ["MODEL.UPDETR.NUM_PATCHES", num_patches, "MODEL.DETR.NUM_QUERIES", num_patches * group]
    else:
        options += ["MODEL.DETR.NUM_CLASSES", 1 if name == "OneShotDETR" else draw(st.sampled_from([0, 2]))]
    return name, options


def configured(root, name: str, options: list):
    labelled = f"coco:{root}/a.json@{root}/images"
    dataset = (f"folder:{root}/images" if name == "UPDETR" else labelled,)
    cfg = tiny_cfg(
        name,
        *("DATASETS.TRAIN", dataset, "DATASETS.TEST", dataset, "DATALOADER.NUM_WORKERS", 0),
        *(
            "SOLVER.MAX_ITER",
            1,
            "SOLVER.STEPS",
            (),
            "DATASETS.ONESHOT.UNSEEN_CLASSES",
            ("dog",),
            "OUTPUT_DIR",
            str(root / "out"),
        ),
        *options,
    )
    check_config(cfg)
    ensure_registered(dataset)
    return task_of(cfg).derive_num_classes(cfg, dataset)  # as tools/train_net.py does


def train_and_predict(root, name: str, options: list) -> None:
    """One step through the trainer, then every image through the model."""
    cfg = configured(root, name, options)
    trainer = UPDETRTrainer(cfg)
    trainer.train()
    losses = [value for key, (value, _) in trainer.storage.latest().items() if "loss" in key]
    assert losses
    assert all(math.isfinite(value) for value in losses)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
    trainer.model.eval()
    count = 0
    for batch in loader:
        with torch.no_grad():
            outputs = trainer.model(batch)
        for sample, output in zip(batch, outputs, strict=True):
            boxes = output["instances"].pred_boxes.tensor
            assert torch.isfinite(boxes).all()
            limit = torch.tensor([sample["width"], sample["height"]] * 2)
            assert ((boxes >= 0) & (boxes <= limit)).all()
            assert ((output["instances"].scores >= 0) & (output["instances"].scores <= 1)).all()
            assert ("panoptic_seg" in output) == (name == "PanopticDETR")
            count += 1
    assert count >= 4


COMMON = {
    "database": None,
    "derandomize": True,
    "phases": [Phase.generate],  # making a failing example smaller would take minutes
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@pytest.mark.slow
@settings(max_examples=30, **COMMON)
@given(configuration=configurations())
def test_random_valid_configurations_train_and_predict(root, configuration):
    train_and_predict(root, *configuration)


@pytest.mark.long
@settings(max_examples=300, **COMMON)
@given(configuration=configurations())
def test_many_random_valid_configurations_train_and_predict(root, configuration):
    train_and_predict(root, *configuration)
