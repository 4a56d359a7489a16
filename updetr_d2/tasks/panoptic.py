"""Instance and panoptic segmentation: detection with a mask for every query."""

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode

from updetr_d2.data.dataset_mappers.panoptic import PanopticDETRDatasetMapper
from updetr_d2.data.datasets.classes import check_masks, derive_num_things
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.tasks.base import TASKS
from updetr_d2.tasks.detection import DetectionTask


@TASKS.register()
class PanopticTask(DetectionTask):
    """Masks of things and stuff."""

    name = "panoptic"
    tabs = ("detection", "panoptic")
    with_unlabeled = ""

    def derive_num_classes(self, cfg: CfgNode, dataset_names: Sequence[str]) -> CfgNode:
        return derive_num_things(super().derive_num_classes(cfg, dataset_names), dataset_names)

    def check_training_set(self, cfg: CfgNode, dataset_dicts: DatasetDicts) -> None:
        super().check_training_set(cfg, dataset_dicts)
        check_masks(dataset_dicts, f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}")

    def check_test_set(self, cfg: CfgNode, dataset_name: str, dataset_dicts: DatasetDicts) -> None:
        check_masks(dataset_dicts, f"DATASETS.TEST '{dataset_name}'", all_of_them=True)

    def build_mapper(
        self, cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
    ) -> Callable[[dict], dict]:
        return PanopticDETRDatasetMapper(cfg, is_train)
