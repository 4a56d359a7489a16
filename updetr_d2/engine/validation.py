"""Checks of a config before anything is built; each failure is one sentence with the key and the fix."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm


def check_config(cfg: CfgNode) -> None:
    """Check the values that would otherwise fail late, or never and silently.

    Args:
        cfg: a config with the keys of ``add_updetr_config``.

    Raises:
        ValueError: naming the key, its value and what it may be.
    """
    _check_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
    _check_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    world_size = comm.get_world_size()
    _check(
        cfg.SOLVER.IMS_PER_BATCH >= 1 and cfg.SOLVER.IMS_PER_BATCH % world_size == 0,
        f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) must be a multiple of the number of processes "
        f"({world_size}).",
    )
    _check(
        not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available(),
        f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}', but torch sees no GPU here; add MODEL.DEVICE cpu.",
    )
    _check(cfg.INPUT.FORMAT in ("RGB", "BGR"), f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}'; use RGB or BGR.")
    detr = cfg.MODEL.DETR
    for name in ("NUM_QUERIES", "HIDDEN_DIM", "NHEADS", "DEC_LAYERS", "DIM_FEEDFORWARD"):
        _check(detr[name] >= 1, f"MODEL.DETR.{name} is {detr[name]}; it must be at least 1.")
    _check(0 <= detr.DROPOUT < 1, f"MODEL.DETR.DROPOUT is {detr.DROPOUT}; it must be in [0, 1).")
    _check(
        0 < cfg.MODEL.CRITERION.EOS_COEF <= 1,
        f"MODEL.CRITERION.EOS_COEF is {cfg.MODEL.CRITERION.EOS_COEF}; it must be in (0, 1].",
    )
    for name in ("KEEP_CHECKPOINTS", "SKIP_NONFINITE_STEPS"):
        _check(cfg.SOLVER[name] >= 0, f"SOLVER.{name} is {cfg.SOLVER[name]}; it must be 0 or more.")
    _check_patches(cfg.INPUT.QUERY_PATCH)


def _check_patches(patch: CfgNode) -> None:
    for name in ("COLOR_JITTER_PROB", "GRAYSCALE_PROB", "BLUR_PROB"):
        _check(
            0 <= patch[name] <= 1,
            f"INPUT.QUERY_PATCH.{name} is {patch[name]}; a probability is in [0, 1].",
        )
    for name in ("SIZE", "MIN_SIZE"):
        _check(patch[name] >= 1, f"INPUT.QUERY_PATCH.{name} is {patch[name]}; it must be at least 1 px.")
    low, high = patch.BLUR_SIGMA
    _check(
        0 < low <= high,
        f"INPUT.QUERY_PATCH.BLUR_SIGMA is {patch.BLUR_SIGMA}; it must be (low, high) with 0 < low <= high.",
    )


def _check_registered(key: str, name: str, registry) -> None:
    names = sorted(registered for registered, _ in registry)
    _check(name in names, f"{key} is '{name}', which is not registered; use one of {', '.join(names)}.")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
