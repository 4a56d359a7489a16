"""UP-DETR's pre-training: find query patches of unlabelled images, random ones or what proposals show."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from updetr_d2.config.checks import check_detr_config
from updetr_d2.data.dataset_mappers.objects import ObjectDatasetMapper
from updetr_d2.data.dataset_mappers.query_patch import QueryPatchDatasetMapper
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.evaluation.query_patch import QueryPatchEvaluator
from updetr_d2.tasks.base import TASKS, QueryPatches
from updetr_d2.tasks.build import build_test_loader
from updetr_d2.tasks.findings import Findings, PredictedClasses, draw_patches
from updetr_d2.tasks.object_pretraining import UnlabeledTask
from updetr_d2.visualization.boxes import draw_query_patch_sample, save_picture


@TASKS.register()
class PretrainingTask(UnlabeledTask):
    """No labels: samples are images with patches of them, evaluation is on fixed random patches."""

    name = "pretraining"
    tabs = ("patches",)

    def check_config(self, cfg: CfgNode) -> None:
        super().check_config(cfg)
        check_detr_config(cfg)
        for is_train in (True, False):
            QueryPatchDatasetMapper(cfg, is_train)

    def build_mapper(
        self, cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
    ) -> Callable[[dict], dict]:
        if is_train and cfg.INPUT.PROPOSALS.FILE:
            return ObjectDatasetMapper(cfg, patch_queries=True)
        return QueryPatchDatasetMapper(cfg, is_train)

    def training_hooks(self, cfg: CfgNode) -> list[HookBase]:
        return [QueryPatchPictures(cfg)] if cfg.VIS_PERIOD > 0 else []

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
        return QueryPatchEvaluator(
            output_folder=output_folder, num_pictures=cfg.TEST.VIS_IMAGES, input_format=cfg.INPUT.FORMAT
        )

    def query_patches(self, cfg: CfgNode) -> QueryPatches:
        return QueryPatches(
            size=cfg.INPUT.QUERY_PATCH.SIZE,
            limit=cfg.MODEL.UPDETR.NUM_PATCHES,
            limit_key="MODEL.UPDETR.NUM_PATCHES",
        )

    def predicted_classes(self, cfg: CfgNode, num_patches: int = 0) -> PredictedClasses:
        count = num_patches or cfg.MODEL.UPDETR.NUM_PATCHES
        return PredictedClasses(
            names=[f"patch {i + 1}" for i in range(count)], ids=[i + 1 for i in range(count)]
        )

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
        if patches is None:
            raise ValueError("A UPDETR looks for query patches: say which ones it was given.")
        return draw_patches(output, image, patches, threshold=threshold)


class QueryPatchPictures(HookBase):
    """Every ``VIS_PERIOD`` iterations, draw what the model finds on a few fixed images.

    Args:
        cfg: ``VIS_PERIOD``, ``TEST.VIS_IMAGES`` and ``DATASETS`` are read; the images come from the first
            test set, or from the first training set if there is none.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.samples: list[dict] = []

    def before_train(self) -> None:
        if not comm.is_main_process():
            return
        name = (*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN)[0]
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        for batch in build_test_loader(cfg, name, split=False):
            self.samples += batch
            if len(self.samples) >= cfg.TEST.VIS_IMAGES:
                break

    def after_step(self) -> None:
        if not self.samples or (self.trainer.iter + 1) % self.cfg.VIS_PERIOD:
            return
        model = getattr(self.trainer.model, "module", self.trainer.model)
        model.eval()
        with torch.no_grad():
            outputs = [model([sample])[0] for sample in self.samples]
        model.train()
        for i, (sample, output) in enumerate(zip(self.samples, outputs)):
            picture = draw_query_patch_sample(sample, output["instances"], self.cfg.INPUT.FORMAT)
            folder = os.path.join(self.cfg.OUTPUT_DIR, "pictures", f"iteration_{self.trainer.iter + 1:07d}")
            save_picture(picture, os.path.join(folder, f"{i}.png"))
            self.trainer.storage.put_image(f"query_patches/{i}", picture.transpose(2, 0, 1))
