"""One-shot detection: the objects of the class that the query patches show."""

from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from updetr_d2.data.dataset_mappers.oneshot import OneShotDatasetMapper
from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.oneshot import queries
from updetr_d2.data.oneshot.splits import class_split
from updetr_d2.evaluation.error_report import ErrorReport
from updetr_d2.evaluation.oneshot import OneShotEvaluator
from updetr_d2.tasks.base import TASKS, QueryPatches
from updetr_d2.tasks.detection import DetectionTask
from updetr_d2.tasks.findings import Findings, PredictedClasses, draw_objects


@TASKS.register()
class OneShotTask(DetectionTask):
    """Training sees the labels of seen classes only; evaluation goes through every image and query."""

    name = "oneshot"
    tabs = ("one_shot",)
    with_unlabeled = ""

    def num_classes_key(self, cfg: CfgNode) -> str | None:
        return None  # the one class is "matches the query"

    def training_set(self, cfg: CfgNode) -> DatasetDicts:
        return queries.training_images(cfg, super().training_set(cfg))

    def test_set(self, cfg: CfgNode, dataset_name: str) -> DatasetDicts:
        return queries.evaluation_queries(cfg, dataset_name, super().test_set(cfg, dataset_name))

    def build_mapper(
        self, cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
    ) -> Callable[[dict], dict]:
        return OneShotDatasetMapper(cfg, is_train, dataset_dicts)

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
        return OneShotEvaluator(
            dataset_name,
            split=class_split(cfg, class_names(dataset_name)),
            num_shots=cfg.DATASETS.ONESHOT.NUM_SHOTS,
            seed=cfg.TEST.ONESHOT.SEED,
            output_folder=output_folder,
            error_report=ErrorReport.from_config(cfg, output_folder),
        )

    def query_patches(self, cfg: CfgNode) -> QueryPatches:
        return QueryPatches(size=cfg.INPUT.QUERY_PATCH.SIZE, margin=cfg.DATASETS.ONESHOT.CONTEXT_MARGIN)

    def predicted_classes(self, cfg: CfgNode, num_patches: int = 0) -> PredictedClasses:
        return PredictedClasses(names=["query"], ids=[1])

    def findings(
        self,
        output: dict[str, Any],
        image: np.ndarray,
        *,
        classes: PredictedClasses,
        threshold: float,
        patches: np.ndarray | None = None,
        picture_scale: float = 1.0,
    ) -> Findings:
        return draw_objects(output, image, threshold=threshold, picture_scale=picture_scale)
