"""A task of its own: tell the number of objects in an image. No boxes, another mapper, loss and measure."""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from updetr_d2.data.dataset_mappers import DETRDatasetMapper
from updetr_d2.tasks import TASKS, Task
from updetr_d2.tasks.findings import Findings, PredictedClasses


@META_ARCH_REGISTRY.register()
class ObjectCounter(nn.Module):
    task = "counting"

    @configurable
    def __init__(self, *, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.count = nn.Linear(backbone.output_shape()["res5"].channels, 1)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {"backbone": build_backbone(cfg)}

    def forward(self, batched_inputs: list[dict]):
        images = ImageList.from_tensors([x["image"] / 255 for x in batched_inputs])
        counts = self.count(self.backbone(images.tensor)["res5"].mean(dim=(2, 3)))[:, 0]
        if not self.training:
            return [{"count": count.item()} for count in counts]
        true_counts = torch.tensor([float(x["num_objects"]) for x in batched_inputs])
        return {"loss_count": nn.functional.l1_loss(counts, true_counts)}


class CountingMapper(DETRDatasetMapper):
    def __call__(self, dataset_dict: dict) -> dict:
        sample = super().__call__(dataset_dict)
        return {**sample, "num_objects": len(dataset_dict.get("annotations", ()))}


class CountingEvaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.errors = []

    def process(self, inputs, outputs) -> None:
        pairs = zip(inputs, outputs)
        self.errors += [abs(output["count"] - sample["num_objects"]) for sample, output in pairs]

    def evaluate(self) -> dict:
        return {"counting": {"mean_error": float(np.mean(self.errors)), "images": len(self.errors)}}


@TASKS.register()
class CountingTask(Task):
    name = "counting"
    tabs = ()

    def check_config(self, cfg) -> None:
        super().check_config(cfg)
        if cfg.MODEL.MASK_ON:
            raise ValueError("MODEL.MASK_ON is True; an ObjectCounter has no masks.")

    def training_set(self, cfg):
        return [each for each in super().training_set(cfg) if len(each["annotations"]) > 1]

    def test_set(self, cfg, dataset_name):
        return super().test_set(cfg, dataset_name)[:2]

    def build_mapper(self, cfg, *, is_train, dataset_dicts=None):
        return CountingMapper(cfg, is_train)

    def build_evaluator(self, cfg, dataset_name, output_folder):
        return CountingEvaluator()

    def predicted_classes(self, cfg, num_patches=0):
        return PredictedClasses(names=["objects"])

    def findings(self, output, image, *, classes, threshold, patches=None, picture_scale=1.0):
        nothing = Instances(image.shape[:2], pred_boxes=Boxes(torch.zeros(0, 4)))
        nothing.scores, nothing.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        return Findings(nothing, {f"count_{round(output['count'])}": image}, best_score=0.0)
