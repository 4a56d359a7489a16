"""The writers of metrics beside Detectron2's: the console, W&B, MLflow."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter

from updetr_d2.config.flat import flat_config
from updetr_d2.engine.console import ConsolePrinter
from updetr_d2.engine.trackers import TRACKERS
from updetr_d2.engine.tracking import TrackingWriter


def build_writers(cfg: CfgNode, *, max_iter: int, resumed: Callable[[], bool]) -> list[EventWriter]:
    """
    Args:
        cfg: of the run; ``TRACKING`` is read.
        max_iter: of the run.
        resumed: whether the training has been resumed; asked once it runs.
    """
    printer = ConsolePrinter(max_iter, images_per_step=images_per_step(cfg), metric=cfg.SOLVER.BEST_METRIC)
    run_name = cfg.TRACKING.NAME or os.path.basename(os.path.abspath(cfg.OUTPUT_DIR))
    trackers = [
        TRACKERS[name](
            project=cfg.TRACKING.PROJECT,
            run_name=run_name,
            output_dir=cfg.OUTPUT_DIR,
            config=flat_config(cfg),
            offline=cfg.TRACKING.OFFLINE,
        )
        for name in cfg.TRACKING.WRITERS
    ]
    return [printer, *(TrackingWriter(tracker, cfg.OUTPUT_DIR, resumed=resumed) for tracker in trackers)]


def images_per_step(cfg: CfgNode) -> int:
    """Images of a step in all processes, those without labels included."""
    unlabeled = cfg.SOLVER.MEAN_TEACHER.UNLABELED_RATIO if cfg.DATASETS.UNLABELED else 0
    return cfg.SOLVER.IMS_PER_BATCH * (1 + unlabeled)
