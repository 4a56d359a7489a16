"""Wrong configurations end `tools/train_net.py` at its start with one sentence that names the key."""

from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from helpers import tiny_cfg
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.cli import train
from updetr_d2.utils.cache import CACHE_VARIABLE

UPDETR, DETR, PANOPTIC, ONESHOT = "UPDETR", "DETR", "PanopticDETR", "OneShotDETR"
ADAPTED = ("SOLVER.STEPS", "()", "SOLVER.EPOCHS", "2", "SOLVER.MAX_ITER", "0")
TIMM = ("MODEL.BACKBONE.NAME", "build_timm_backbone")
RESNET = ("MODEL.BACKBONE.NAME", "build_resnet_backbone")
CLIP = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True")
AMP = ("SOLVER.AMP.ENABLED", "True")
POINTS = (
    *("MODEL.MASK_HEAD.IN_FEATURES", "['res4', 'res4', 'res4']", "MODEL.MASK_HEAD.TRAIN_NUM_POINTS", "9"),
)


def each(meta_architecture: str, table: str) -> list:
    """Cases of one line each, "KEY VALUE"; the message must name the key."""
    return [
        pytest.param(meta_architecture, (key, value.strip()), key, id=f"{key} {value.strip()}")
        for key, _, value in (line.strip().partition(" ") for line in table.strip().splitlines())
    ]


CASES = [
    *each(
        UPDETR,
        """
        MODEL.META_ARCHITECTURE DERT
        MODEL.TYPO 1
        MODEL.BACKBONE.NAME build_no_backbone
        MODEL.DEVICE gpu
        MODEL.DETR.NUM_QUERIES 0
        MODEL.DETR.NUM_QUERIES -5
        MODEL.DETR.HIDDEN_DIM 30
        MODEL.DETR.HIDDEN_DIM 0
        MODEL.DETR.NHEADS 5
        MODEL.DETR.NHEADS 0
        MODEL.DETR.ENC_LAYERS -1
        MODEL.DETR.DEC_LAYERS 0
        MODEL.DETR.DIM_FEEDFORWARD -1
        MODEL.DETR.DROPOUT 1.0
        MODEL.DETR.DROPOUT -0.1
        MODEL.DETR.PRE_NORM pre
        MODEL.DETR.DEEP_SUPERVISION 1
        MODEL.DETR.IN_FEATURE res9
        MODEL.DETR.NUM_CLASSES 3
        MODEL.DETR.NUM_CLASSES 0
        MODEL.DETR.NUM_CLASSES -1
        MODEL.UPDETR.NUM_PATCHES 3
        MODEL.UPDETR.NUM_PATCHES 0
        MODEL.UPDETR.NUM_PATCHES -2
        MODEL.UPDETR.MASK_RATIO 1.0
        MODEL.UPDETR.MASK_RATIO -0.5
        MODEL.MATCHER.NAME GreedyMatcher
        MODEL.MATCHER.COST_BBOX -1.0
        MODEL.CRITERION.NAME NoCriterion
        MODEL.CRITERION.BBOX_WEIGHT -1.0
        MODEL.CRITERION.FEATURE_WEIGHT -1.0
        MODEL.CRITERION.EOS_COEF 0.0
        MODEL.WEIGHTS /nowhere/x.pth
        MODEL.PIXEL_MEAN [1.0]
        MODEL.PIXEL_STD [1.0]
        MODEL.PIXEL_STD [0.0, 1.0, 1.0]
        INPUT.FORMAT L
        INPUT.CROP.ENABLED True
        INPUT.MIN_SIZE_TRAIN ()
        INPUT.MIN_SIZE_TRAIN (0,)
        INPUT.MAX_SIZE_TRAIN 0
        INPUT.MIN_SIZE_TRAIN_SAMPLING range
        INPUT.MIN_SIZE_TEST 0
        INPUT.MAX_SIZE_TEST -1
        INPUT.MIN_IMAGE_SIDE 10
        INPUT.MAX_PIXELS 0
        INPUT.MAX_PIXELS 200000000
        INPUT.DECODE_TIME_LIMIT -1.0
        INPUT.GRAY_BITS 17
        INPUT.QUERY_PATCH.SIZE 0
        INPUT.QUERY_PATCH.MIN_SIZE 0
        INPUT.QUERY_PATCH.COLOR_JITTER_PROB 2.0
        INPUT.QUERY_PATCH.GRAYSCALE_PROB -0.1
        INPUT.QUERY_PATCH.BLUR_PROB 1.5
        INPUT.QUERY_PATCH.BRIGHTNESS -1.0
        INPUT.QUERY_PATCH.HUE 0.6
        INPUT.QUERY_PATCH.BLUR_SIGMA (0.0, 1.0)
        INPUT.QUERY_PATCH.BLUR_SIGMA (1.0,)
        INPUT.QUERY_PATCH.BLUR_SIGMA (2.0, 0.1)
        INPUT.QUERY_PATCH.EVAL_SEED -1
        DATASETS.TRAIN ()
        DATASETS.TRAIN nope
        DATALOADER.NUM_WORKERS -1
        DATALOADER.MAX_CONSECUTIVE_FAILURES 0
        DATALOADER.MIXED_SHARDS -1
        DATALOADER.READ_RETRIES -1
        DATALOADER.READ_RETRY_DELAY -1.0
        SOLVER.IMS_PER_BATCH 0
        SOLVER.MAX_ITER 0
        SOLVER.EPOCHS -1
        SOLVER.BASE_LR -1.0
        SOLVER.BASE_LR 0.0
        SOLVER.BASE_LR fast
        SOLVER.WEIGHT_DECAY -1.0
        SOLVER.OPTIMIZER LION
        SOLVER.LR_SCHEDULER_NAME Cosine
        SOLVER.WARMUP_ITERS -1
        SOLVER.GAMMA 0.0
        SOLVER.BACKBONE_MULTIPLIER -1.0
        SOLVER.STEPS (30, 20)
        SOLVER.CHECKPOINT_EPOCHS -1
        SOLVER.KEEP_CHECKPOINTS -1
        SOLVER.SKIP_NONFINITE_STEPS -1
        TEST.EVAL_EPOCHS -1
        TEST.EVAL_PERIOD -1
        TEST.VIS_IMAGES -1
        VIS_PERIOD -1
        """,
    ),
    *each(
        DETR,
        """
        MODEL.DETR.NUM_CLASSES 5
        MODEL.DETR.NUM_CLASSES 1
        MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER True
        MODEL.MASK_ON True
        INPUT.RANDOM_FLIP diagonal
        INPUT.DETR_CROP.PROB 2.0
        INPUT.DETR_CROP.RESIZE_SIDES ()
        INPUT.DETR_CROP.RESIZE_SIDES (0,)
        INPUT.DETR_CROP.CROP_SIDE_RANGE (600, 384)
        INPUT.DETR_CROP.CROP_SIDE_RANGE (0, 384)
        INPUT.DETR_CROP.CROP_SIDE_RANGE (384,)
        INPUT.MIN_SIZE_TEST -1
        """,
    ),
    *each(
        ONESHOT,
        """
        DATASETS.ONESHOT.SPLIT coco_split9
        DATASETS.ONESHOT.SPLIT voc
        DATASETS.ONESHOT.NUM_SHOTS 0
        TEST.ONESHOT.NUM_QUERIES 0
        TEST.ONESHOT.SEED -1
        """,
    ),
    *each(
        PANOPTIC,
        """
        MODEL.MASK_HEAD.IN_FEATURES ['res4']
        MODEL.MASK_HEAD.IN_FEATURES ['res4', 'res3', 'res2']
        MODEL.MASK_HEAD.NUM_THING_CLASSES 9
        MODEL.MASK_HEAD.TRAIN_NUM_POINTS -1
        MODEL.MASK_HEAD.MASK_THRESHOLD 2.0
        MODEL.MASK_HEAD.SCORE_THRESHOLD -0.5
        MODEL.MASK_HEAD.MIN_SEGMENT_AREA -1
        """,
    ),
    # What needs several keys, or is named by a part of the key.
    *(
        pytest.param(meta_architecture, options, named, id=" ".join(options))
        for meta_architecture, options, named in [
            (UPDETR, ("OUTPUT_DIR", "ROOT/a.json"), "OUTPUT_DIR"),
            (UPDETR, ("DATASETS.TRAIN", "('nope',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TRAIN", "('folder:ROOT/nowhere',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TRAIN", "('folder:ROOT/a.json',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TRAIN", "('shards:ROOT/{0..3}.tar',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TRAIN", "('shards:ROOT/a.json',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TRAIN", "('coco:ROOT/no.json@ROOT/images',)"), "no.json"),
            (UPDETR, ("DATASETS.TRAIN", "('coco:ROOT/a.json',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TRAIN", "('folder:ROOT/images')"), "DATASETS.TRAIN \"('NAME',)\""),
            (UPDETR, ("DATASETS.TEST", "('nope',)"), "DATASETS"),
            (UPDETR, ("DATASETS.TEST", "('folder:ROOT/nothing',)"), "DATASETS.TEST"),
            (UPDETR, ("DATASETS.TEST", "('imagenet_val_unlabeled',)"), "DATASETS.TEST"),
            (UPDETR, (*AMP, "SOLVER.AMP.DTYPE", "int8"), "SOLVER.AMP.DTYPE"),
            (UPDETR, (*AMP, "SOLVER.AMP.DTYPE", "float16"), "SOLVER.AMP.DTYPE"),
            (UPDETR, (*ADAPTED, "SOLVER.EPOCH_STEPS", "(5,)"), "SOLVER.EPOCH_STEPS"),
            (UPDETR, (*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"), "CLIP_GRADIENTS.CLIP_TYPE"),
            (UPDETR, (*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"), "CLIP_GRADIENTS.CLIP_VALUE"),
            (UPDETR, (*RESNET, "MODEL.RESNETS.DEPTH", "17"), "MODEL.RESNETS.DEPTH"),
            (UPDETR, (*RESNET, "MODEL.RESNETS.OUT_FEATURES", "['res9']"), "MODEL.RESNETS.OUT_FEATURES"),
            (UPDETR, (*TIMM, "MODEL.TIMM.NAME", "nope"), "MODEL.TIMM.NAME"),
            (UPDETR, (*TIMM, "MODEL.TIMM.OUT_FEATURES", "['res9']"), "MODEL.TIMM.OUT_FEATURES"),
            (UPDETR, ("MODEL.MASK_HEAD.FEATURE_SCALE", "0.0"), "MODEL.MASK_HEAD.FEATURE_SCALE"),
            (
                UPDETR,
                [x for name in ("CLASS", "BBOX", "GIOU") for x in (f"MODEL.MATCHER.COST_{name}", "0.0")],
                "MODEL.MATCHER.COST_CLASS",
            ),
            (DETR, ("DATASETS.TRAIN", "('folder:ROOT/images',)"), "DATASETS"),
            (PANOPTIC, (*POINTS, "MODEL.MASK_HEAD.OVERSAMPLE_RATIO", "0.0"), "OVERSAMPLE_RATIO"),
            (PANOPTIC, (*POINTS, "MODEL.MASK_HEAD.IMPORTANCE_SAMPLE_RATIO", "2.0"), "IMPORTANCE_SAMPLE_RATIO"),
            (ONESHOT, ("DATASETS.ONESHOT.UNSEEN_CLASSES", "('horse',)"), "DATASETS.ONESHOT"),
            (ONESHOT, ("DATASETS.ONESHOT.UNSEEN_CLASSES", "('cat', 'dog')"), "DATASETS.ONESHOT"),
            (ONESHOT, ("DATASETS.ONESHOT.ABSENT_SHARE", "2.0"), "ABSENT_SHARE (2.0)"),
            (ONESHOT, ("DATASETS.ONESHOT.CONTEXT_MARGIN", "-1.0"), "CONTEXT_MARGIN (-1.0)"),
        ]
    ),
]  # fmt: skip


@pytest.fixture(name="root", scope="module")
def data_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    write_tiny_coco(root)
    (root / "masks").mkdir()
    write_tiny_coco(root / "masks", masks=True)
    (root / "nothing").mkdir()
    return root


@pytest.fixture(autouse=True)
def clean_up(root, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(root / "cache"))
    before = set(DatasetCatalog)
    yield
    forget_runs(before)


def start_and_train(root: Path, meta_architecture: str, options: list[str], monkeypatch) -> None:
    """What the command line does, for one step; without the report of the environment, which takes a second."""
    labelled_root = root / "masks" if meta_architecture == PANOPTIC else root
    labelled = f"coco:{labelled_root}/a.json@{labelled_root}/images"
    cfg = tiny_cfg(
        meta_architecture,
        *("DATASETS.TRAIN", (f"folder:{root}/images" if meta_architecture == UPDETR else labelled,)),
        *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1),
        *("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "INPUT.QUERY_PATCH.SIZE", 32),
        *("MODEL.DETR.NUM_CLASSES", 1 if meta_architecture == ONESHOT else 2),
        *("DATASETS.ONESHOT.UNSEEN_CLASSES", ("dog",), "OUTPUT_DIR", str(root / "output")),
    )
    (root / "config.yaml").write_text(cfg.dump())
    train_net = train
    monkeypatch.setattr(train_net, "default_setup", lambda *_: None)
    args = Namespace(config_file=str(root / "config.yaml"), opts=options, eval_only=False, resume=False)
    trainer = train_net.UPDETRTrainer(train_net.setup(args))
    trainer.resume_or_load(resume=False)
    trainer.train()


@pytest.mark.parametrize(("meta_architecture", "options", "named"), CASES)
def test_a_wrong_configuration_is_one_sentence_that_names_the_key(
    meta_architecture, options, named, root, monkeypatch
):
    options = [option.replace("ROOT", str(root)) for option in options]
    with pytest.raises(Exception) as caught:
        start_and_train(root, meta_architecture, options, monkeypatch)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 450
    # Nothing was trained on nonsense.
    assert not list((root / "output").glob("*.pth"))


@pytest.mark.parametrize("meta_architecture", [UPDETR, DETR, ONESHOT])
def test_without_the_fault_it_trains(meta_architecture, root, monkeypatch):
    start_and_train(root, meta_architecture, [], monkeypatch)
    assert (root / "output" / "model_final.pth").exists()
    for file in (root / "output").glob("*.pth"):
        file.unlink()
