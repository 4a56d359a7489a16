"""Schedules given in epochs, turned into Detectron2's iterations."""

import logging

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def derive_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """Fill in the iteration keys that are 0 or empty from their counterparts in epochs.

    ``SOLVER.MAX_ITER`` comes from ``SOLVER.EPOCHS``, ``SOLVER.STEPS`` from ``SOLVER.EPOCH_STEPS``,
    ``SOLVER.CHECKPOINT_PERIOD`` from ``SOLVER.CHECKPOINT_EPOCHS``, ``TEST.EVAL_PERIOD`` from
    ``TEST.EVAL_EPOCHS``. A value that is set in iterations wins. An epoch is the number of full batches in the
    data set, as in the official code.

    Args:
        cfg: the config of a run; not changed.
        num_images: images in the training set, at least 1.

    Returns:
        a copy with all four keys in iterations, frozen if ``cfg`` was.

    Raises:
        ValueError: if neither ``SOLVER.EPOCHS`` nor ``SOLVER.MAX_ITER`` is set, or a step is not inside the
            schedule.
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    epoch_length = max(num_images // solver.IMS_PER_BATCH, 1)
    if solver.MAX_ITER <= 0:
        if solver.EPOCHS <= 0:
            raise ValueError("Set SOLVER.EPOCHS (or SOLVER.MAX_ITER) to a positive number.")
        solver.MAX_ITER = round(solver.EPOCHS * epoch_length)
    if not solver.STEPS and solver.EPOCH_STEPS:
        if solver.EPOCHS <= 0 or max(solver.EPOCH_STEPS) >= solver.EPOCHS:
            raise ValueError(
                f"SOLVER.EPOCH_STEPS {tuple(solver.EPOCH_STEPS)} must be smaller than SOLVER.EPOCHS "
                f"({solver.EPOCHS})."
            )
        # Relative to the whole run, so that a shortened MAX_ITER keeps the shape of the schedule.
        solver.STEPS = tuple(round(step / solver.EPOCHS * solver.MAX_ITER) for step in solver.EPOCH_STEPS)
    inside = tuple(sorted({step for step in solver.STEPS if 0 < step < solver.MAX_ITER}))
    if inside != tuple(solver.STEPS):  # the scheduler raises an error that names no key
        logger.warning(
            "SOLVER.STEPS %s: those between 0 and SOLVER.MAX_ITER (%d) count, %s.",
            *(tuple(solver.STEPS), solver.MAX_ITER, inside),
        )
        solver.STEPS = inside
    if solver.CHECKPOINT_PERIOD <= 0:
        solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_EPOCHS * epoch_length) or solver.MAX_ITER
    if cfg.TEST.EVAL_PERIOD <= 0:
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_EPOCHS * epoch_length)
    logger.info(
        "Schedule: %d images, batches of %d, %d iterations an epoch; SOLVER.MAX_ITER %d (%.1f epochs), "
        "SOLVER.STEPS %s, SOLVER.CHECKPOINT_PERIOD %d, TEST.EVAL_PERIOD %d",
        num_images,
        solver.IMS_PER_BATCH,
        epoch_length,
        solver.MAX_ITER,
        solver.MAX_ITER / epoch_length,
        tuple(solver.STEPS),
        solver.CHECKPOINT_PERIOD,
        cfg.TEST.EVAL_PERIOD,
    )
    if frozen:
        cfg.freeze()
    return cfg
