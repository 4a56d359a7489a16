"""The boxes of a detector of ours as proposals: the next round of self-training."""

import numpy as np
import torch
from torchvision.ops import nms

from updetr_d2.config.access import changed
from updetr_d2.data.proposals.source import PROPOSAL_REGISTRY, ProposalSource, SourceOptions
from updetr_d2.inference.predictor import Predictor
from updetr_d2.tasks import task_of

_NMS_THRESHOLD = 0.7


@PROPOSAL_REGISTRY.register()
class ModelBoxes(ProposalSource):
    """What the model of a config finds, whatever its class, without duplicates of IoU 0.7 and more.

    A UPDETR, which needs patches, predicts as an ObjectDETR, which does not.
    """

    name = "model"
    needs_config = True

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        assert options.cfg is not None
        cfg = options.cfg
        if task_of(cfg).query_patches(cfg) is not None:
            cfg = changed(cfg, ["MODEL.META_ARCHITECTURE", "ObjectDETR"])
        self.predictor = Predictor(cfg)

    def __call__(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        found = self.predictor(image).instances
        boxes, scores = found.pred_boxes.tensor, found.scores
        kept = nms(boxes, scores, _NMS_THRESHOLD)
        return boxes[kept].double().numpy(), scores[kept].to(torch.float32).numpy()
