"""Checks of a config before anything is built; each failure is one sentence with the key and the fix.

Values are checked where they are used; called here, these checks fail before data are listed and weights read
instead of hours later, in the first evaluation. What Detectron2 or PyTorch would take silently, or refuse without
naming the key, is checked here.
"""

import importlib.util
from collections.abc import Collection, Iterable
from itertools import pairwise

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils import comm
from detectron2.utils.registry import Registry

from updetr_d2.config.access import get_value
from updetr_d2.data.loading.build import images_per_process
from updetr_d2.data.transforms.read_options import LARGEST_MAX_PIXELS
from updetr_d2.modeling.criterion import CRITERION_REGISTRY
from updetr_d2.modeling.matcher import MATCHER_REGISTRY

_AT_LEAST_1 = (
    "MODEL.DETR.NUM_QUERIES",
    "MODEL.DETR.HIDDEN_DIM",
    "MODEL.DETR.NHEADS",
    "MODEL.DETR.DEC_LAYERS",
    "MODEL.DETR.DIM_FEEDFORWARD",
    "INPUT.PROPOSALS.MAX_BOXES",
    "INPUT.PROPOSALS.MIN_BOXES",
    "MODEL.MATCHER.MAX_PER_TARGET",
    "MODEL.DETR.PAD_MULTIPLE",
    "MODEL.TIMM.PYRAMID_CHANNELS",
    "DATALOADER.MAX_CONSECUTIVE_FAILURES",
    "SOLVER.ACCUMULATION_STEPS",
    "TEST.ONESHOT.NUM_QUERIES",
    "TEST.ERROR_IMAGES",
)
_AT_LEAST_0 = (
    "MODEL.DETR.NUM_CLASSES",
    "MODEL.DETR.ENC_LAYERS",
    "MODEL.MASK_HEAD.MIN_SEGMENT_AREA",
    "MODEL.MATCHER.COST_CLASS",
    "MODEL.MATCHER.COST_BBOX",
    "MODEL.MATCHER.COST_GIOU",
    "MODEL.CRITERION.CLASS_WEIGHT",
    "MODEL.CRITERION.BBOX_WEIGHT",
    "MODEL.CRITERION.GIOU_WEIGHT",
    "MODEL.CRITERION.FEATURE_WEIGHT",
    "MODEL.CRITERION.MASK_WEIGHT",
    "MODEL.CRITERION.DICE_WEIGHT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.MIXED_SHARDS",
    "INPUT.BATCHES_PER_SCALE",
    "DATALOADER.READ_RETRIES",
    "DATALOADER.READ_RETRY_DELAY",
    "INPUT.DECODE_TIME_LIMIT",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.EPOCHS",
    "SOLVER.PATIENCE",
    "SOLVER.HELD_ITERS",
    "SOLVER.ADVISED_ITERS",
    "SOLVER.CHECKPOINT_EPOCHS",
    "SOLVER.KEEP_CHECKPOINTS",
    "SOLVER.SKIP_NONFINITE_STEPS",
    "TEST.EVAL_EPOCHS",
    "TEST.EVAL_PERIOD",
    "TEST.VIS_IMAGES",
    "TEST.ONESHOT.SEED",
    "VIS_PERIOD",
    "INPUT.QUERY_PATCH.EVAL_SEED",
)
_FRACTIONS = (
    "MODEL.DETR.NMS_THRESH",
    "MODEL.DEFORMABLE.PROPOSAL_NMS_THRESH",
    "MODEL.DEFORMABLE.CENTER_RADIUS",
    "MODEL.MASK_HEAD.MASK_THRESHOLD",
    "MODEL.MASK_HEAD.SCORE_THRESHOLD",
    "MODEL.UPDETR.DROP_IOU",
    "INPUT.PROPOSALS.RANDOM_SHARE",
    "INPUT.PROPOSALS.MIN_VISIBLE",
)
_POSITIVE = (
    "SOLVER.BASE_LR",
    "SOLVER.GAMMA",
    "SOLVER.LAYER_DECAY",
    "SOLVER.PLATEAU.MIN_LR",
    "MODEL.MASK_HEAD.FEATURE_SCALE",
)
_LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")  # Detectron2's
_MATMUL_PRECISIONS = ("highest", "high", "medium")
_CLIP_TYPES = ("full_model", "norm", "value")
_TRACKING_WRITERS = ("wandb", "mlflow")  # names of the packages as well
_RESNET_DEPTHS = (18, 34, 50, 101, 152)
_RESNET_FEATURES = ("stem", "res2", "res3", "res4", "res5")


def check_common_config(cfg: CfgNode) -> None:
    """Check what counts for every model; :func:`updetr_d2.tasks.check_config` adds what its task reads.

    Args:
        cfg: a config with the keys of ``add_updetr_config``.

    Raises:
        ValueError: naming the key, its value and what it may be.
    """
    _check_ranges(cfg)
    _check_reading(cfg.INPUT)
    _check_device(cfg.MODEL.DEVICE)
    _check_backbone(cfg)
    _check_solver(cfg.SOLVER)
    _check_tracking(cfg.TRACKING)
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE  # Detectron2 scales the batch to other numbers of processes
    if reference in (0, comm.get_world_size()):
        images_per_process(cfg)
    else:
        _check(
            cfg.SOLVER.IMS_PER_BATCH % reference == 0,
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; it must be a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE ({reference}).",
        )


def _check_ranges(cfg: CfgNode) -> None:
    for keys, holds, range_ in (
        (_AT_LEAST_1, lambda value: value >= 1, "it must be at least 1"),
        (_AT_LEAST_0, lambda value: value >= 0, "it must not be negative"),
        (_FRACTIONS, lambda value: 0 <= value <= 1, "it must be in [0, 1]"),
        (_POSITIVE, lambda value: value > 0, "it must be positive"),
    ):
        for key in keys:
            value = get_value(cfg, key)
            _check(holds(value), f"{key} is {value}; {range_}.")


def _check_reading(image: CfgNode) -> None:
    _check(
        1 <= image.MAX_PIXELS <= LARGEST_MAX_PIXELS,
        f"INPUT.MAX_PIXELS is {image.MAX_PIXELS}; it must be in [1, {LARGEST_MAX_PIXELS}].",
    )
    _check(8 <= image.GRAY_BITS <= 16, f"INPUT.GRAY_BITS is {image.GRAY_BITS}; it must be in [8, 16].")


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    _check(
        kind in ("cpu", "cuda", "mps", "xpu"), f"MODEL.DEVICE is '{device}'; use cpu or cuda (or cuda:1 ...)."
    )
    _check(
        torch.device(device).index is None or comm.get_world_size() == 1,
        f"MODEL.DEVICE is '{device}', which all {comm.get_world_size()} processes would share; use {kind}, and "
        "CUDA_VISIBLE_DEVICES to choose the GPUs.",
    )
    _check(
        kind != "cuda" or torch.cuda.is_available(),
        f"MODEL.DEVICE is '{device}', but torch sees no GPU here; add MODEL.DEVICE cpu.",
    )


def _check_backbone(cfg: CfgNode) -> None:
    check_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if "resnet" not in cfg.MODEL.BACKBONE.NAME:
        return
    resnets = cfg.MODEL.RESNETS
    _check(
        resnets.DEPTH in _RESNET_DEPTHS,
        f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; use one of {_listed(_RESNET_DEPTHS)}.",
    )
    _check(
        resnets.OUT_FEATURES and set(resnets.OUT_FEATURES) <= set(_RESNET_FEATURES),
        f"MODEL.RESNETS.OUT_FEATURES is {resnets.OUT_FEATURES}; choose from {_listed(_RESNET_FEATURES)}.",
    )


def _check_solver(solver: CfgNode) -> None:
    _check_choice("SOLVER.MATMUL_PRECISION", solver.MATMUL_PRECISION, _MATMUL_PRECISIONS)
    _check_choice("SOLVER.LR_SCHEDULER_NAME", solver.LR_SCHEDULER_NAME, _LR_SCHEDULERS)
    _check(
        all(a < b for a, b in pairwise(solver.STEPS)),
        f"SOLVER.STEPS is {tuple(solver.STEPS)}; the iterations must be ascending.",
    )
    _check(
        not solver.PATIENCE or solver.BEST_METRIC,
        f"SOLVER.PATIENCE is {solver.PATIENCE}, which needs SOLVER.BEST_METRIC: set it to bbox/AP, for instance.",
    )
    _check_plateau(solver)
    decay = solver.EMA.DECAY
    _check(0 <= decay < 1, f"SOLVER.EMA.DECAY is {decay}; it must be in [0, 1).")
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        _check_choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, _CLIP_TYPES)
        _check(
            clip.CLIP_VALUE > 0,
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clip.CLIP_VALUE}; it must be positive.",
        )


def _check_plateau(solver: CfgNode) -> None:
    patience, factor = tuple(solver.PLATEAU.PATIENCE), solver.PLATEAU.FACTOR
    _check(
        all(isinstance(each, int) and each > 0 for each in patience),
        f"SOLVER.PLATEAU.PATIENCE is {patience}; use positive numbers of evaluations, such as (3, 8), or ().",
    )
    _check(0 < factor < 1, f"SOLVER.PLATEAU.FACTOR is {factor}; it must be in (0, 1).")
    _check(
        not patience or solver.BEST_METRIC,
        f"SOLVER.PLATEAU.PATIENCE is {patience}, which needs SOLVER.BEST_METRIC: set it to bbox/AP, for instance.",
    )
    _check(
        bool(not solver.HELD_PARAMETERS or solver.HELD_ITERS or patience),
        f"SOLVER.HELD_PARAMETERS is {tuple(solver.HELD_PARAMETERS)}, but nothing says when they learn: set "
        "SOLVER.HELD_ITERS, or SOLVER.PLATEAU.PATIENCE.",
    )


def _check_tracking(tracking: CfgNode) -> None:
    for name in tracking.WRITERS:
        _check_choice("TRACKING.WRITERS", name, _TRACKING_WRITERS)
        _check(
            _is_installed(name),
            f"TRACKING.WRITERS names {name}, but the Python package '{name}' is not installed: install it, or "
            "take the name out.",
        )
    _check(bool(tracking.PROJECT), "TRACKING.PROJECT is empty; give it the name of a project or experiment.")


def _is_installed(package: str) -> bool:
    """Not fooled by a folder of that name, such as W&B leaves in OUTPUT_DIR."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def check_detr_config(cfg: CfgNode) -> None:
    """Check what DETR and the models that build on it read.

    Raises:
        ValueError: naming the key, its value and what it may be.
    """
    check_registered("MODEL.MATCHER.NAME", cfg.MODEL.MATCHER.NAME, MATCHER_REGISTRY)
    check_registered("MODEL.CRITERION.NAME", cfg.MODEL.CRITERION.NAME, CRITERION_REGISTRY)
    dropout, eos_coef = cfg.MODEL.DETR.DROPOUT, cfg.MODEL.CRITERION.EOS_COEF
    _check(0 <= dropout < 1, f"MODEL.DETR.DROPOUT is {dropout}; it must be in [0, 1).")
    _check(0 < eos_coef <= 1, f"MODEL.CRITERION.EOS_COEF is {eos_coef}; it must be in (0, 1].")
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        value = get_value(cfg, key)
        _check(len(value) == 3, f"{key} is {list(value)}; it must have a number for each of three channels.")
    _check(
        min(cfg.MODEL.PIXEL_STD) > 0,
        f"MODEL.PIXEL_STD is {list(cfg.MODEL.PIXEL_STD)}; all three numbers must be positive.",
    )
    _check(
        not cfg.INPUT.CROP.ENABLED,
        "INPUT.CROP.ENABLED is True, which these models do not read; use INPUT.DETR_CROP and set it to False.",
    )


def check_registered(key: str, name: str, registry: Registry) -> None:
    """Check that a config names what a registry holds.

    Raises:
        ValueError: naming the key, its value and all that is registered.
    """
    _check_choice(key, name, sorted(registered for registered, _ in registry))


def _check_choice(key: str, value: str, choices: Collection[str]) -> None:
    _check(value in choices, f"{key} is '{value}'; use one of {_listed(choices)}.")


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
