"""Detection of the classes of a labelled data set with DETR."""

from collections.abc import Callable

from detectron2.config import CfgNode

from updetr_d2.config.checks import check_detr_config
from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper, build_detr_augmentations
from updetr_d2.data.dataset_mappers.panoptic import PanopticDETRDatasetMapper
from updetr_d2.data.datasets.classes import advise_queries
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.datasets.panoptic_classes import is_panoptic
from updetr_d2.tasks.base import TASKS, Task


@TASKS.register()
class DetectionTask(Task):
    """Boxes of the data set's classes; also the first step of panoptic training, which learns boxes from masks."""

    name = "detection"
    tabs: tuple[str, ...] = ("detection",)
    with_unlabeled = "semi_supervised_detection"

    def check_config(self, cfg: CfgNode) -> None:
        super().check_config(cfg)
        check_detr_config(cfg)
        for is_train in (True, False):
            build_detr_augmentations(cfg, is_train)

    def num_classes_key(self, cfg: CfgNode) -> str | None:
        return "MODEL.DETR.NUM_CLASSES"

    def check_training_set(self, cfg: CfgNode, dataset_dicts: DatasetDicts) -> None:
        super().check_training_set(cfg, dataset_dicts)
        advise_queries(cfg, dataset_dicts)

    def build_mapper(
        self, cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
    ) -> Callable[[dict], dict]:
        from_masks = any(is_panoptic(name) for name in cfg.DATASETS.TRAIN)
        return (PanopticDETRDatasetMapper if from_masks else DETRDatasetMapper)(cfg, is_train)
