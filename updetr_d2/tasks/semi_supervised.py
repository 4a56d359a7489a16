"""Detection from labeled images and, through a mean teacher, from images without labels."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from updetr_d2.config.access import get_value
from updetr_d2.data.dataset_mappers.two_views import TwoViewDatasetMapper
from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.datasets.names import DatasetDicts, load_dataset_dicts
from updetr_d2.data.loading.build import build_train_loader, images_per_process
from updetr_d2.data.loading.paired import PairedLoader
from updetr_d2.mean_teacher.pictures import PseudoLabelPictures
from updetr_d2.mean_teacher.step import MeanTeacherStep
from updetr_d2.tasks.base import TASKS
from updetr_d2.tasks.detection import DetectionTask

logger = logging.getLogger(__name__)

_GROUP = "SOLVER.MEAN_TEACHER"
_FRACTIONS = (
    *("SCORE_THRESH", "UNCERTAIN_SCORE", "CLASS_QUANTILE", "NMS_THRESH", "DROP_LOSS_IOU", "MIN_VISIBLE"),
)
_LEAST = {"UNLABELED_RATIO": 1, "BURN_IN_ITERS": 0, "RAMP_ITERS": 0, "WEIGHT": 0, "COLLAPSE_ITERS": 1}


@TASKS.register()
class SemiSupervisedDetectionTask(DetectionTask):
    """As detection, with ``DATASETS.UNLABELED`` beside ``DATASETS.TRAIN``."""

    name = "semi_supervised_detection"

    def check_config(self, cfg: CfgNode) -> None:
        super().check_config(cfg)
        for name in _FRACTIONS:
            value = get_value(cfg, f"{_GROUP}.{name}")
            if not 0 <= value <= 1:
                raise ValueError(f"{_GROUP}.{name} is {value}; it must be in [0, 1].")
        for name, least in _LEAST.items():
            value = get_value(cfg, f"{_GROUP}.{name}")
            if value < least:
                raise ValueError(f"{_GROUP}.{name} is {value}; it must be at least {least}.")
        options = cfg.SOLVER.MEAN_TEACHER
        if options.UNCERTAIN_SCORE > options.SCORE_THRESH:
            raise ValueError(
                f"{_GROUP}.UNCERTAIN_SCORE is {options.UNCERTAIN_SCORE}; it must not be above SCORE_THRESH "
                f"({options.SCORE_THRESH})."
            )
        if not cfg.SOLVER.EMA.ENABLED:
            raise ValueError(
                "DATASETS.UNLABELED needs a teacher, the average of the weights: set SOLVER.EMA.ENABLED True."
            )
        TwoViewDatasetMapper(cfg)

    def build_train_loader(self, cfg: CfgNode, dataset_dicts: DatasetDicts) -> PairedLoader:
        labeled = build_train_loader(
            cfg, mapper=self.build_mapper(cfg, is_train=True), dataset_dicts=dataset_dicts
        )
        names, key = cfg.DATASETS.UNLABELED, "DATASETS.UNLABELED"
        images = load_dataset_dicts(names, filter_empty=False, key=key)
        ratio = cfg.SOLVER.MEAN_TEACHER.UNLABELED_RATIO
        logger.info(
            "%s: %d images without labels beside %d with; a batch has %d and %d of them.",
            *(
                key,
                len(images),
                len(dataset_dicts),
                ratio * cfg.SOLVER.IMS_PER_BATCH,
                cfg.SOLVER.IMS_PER_BATCH,
            ),
        )
        unlabeled = build_train_loader(
            cfg,
            mapper=TwoViewDatasetMapper(cfg, with_labels=has_labels(cfg, images)),
            dataset_dicts=images,
            batch_size=ratio * images_per_process(cfg),
            seed=labeled.seed + 1,
            key=key,
        )
        return PairedLoader(labeled, unlabeled, burn_in=cfg.SOLVER.MEAN_TEACHER.BURN_IN_ITERS)

    def build_training_step(self, cfg: CfgNode, average: nn.Module | None) -> MeanTeacherStep:
        assert average is not None  # SOLVER.EMA is checked
        return MeanTeacherStep(cfg, teacher=average)

    def training_hooks(self, cfg: CfgNode) -> list[HookBase]:
        if not cfg.VIS_PERIOD or not comm.is_main_process():
            return []
        return [PseudoLabelPictures(cfg)]


def has_labels(cfg: CfgNode, images: DatasetDicts) -> bool:
    """Whether the images of ``DATASETS.UNLABELED`` have labels after all, to measure the teacher with.

    Args:
        cfg: of the run.
        images: the dataset dicts.
    """
    classes = class_names(cfg.DATASETS.TRAIN[0])
    return all(
        list(MetadataCatalog.get(name).get("thing_classes", ())) == classes for name in cfg.DATASETS.UNLABELED
    ) and any(each.get("annotations") for each in images)
