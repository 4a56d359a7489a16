"""The frozen CNN of a config, for boxes from features and for clusters of what boxes show."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor, nn

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.config.access import changed
from updetr_d2.config.build import arguments_as_keys
from updetr_d2.data.transforms.image_io import stack_to_tensor
from updetr_d2.modeling.backbone import build_backbone


class FrozenCNN(nn.Module):
    """``MODEL.BACKBONE`` with the weights of ``MODEL.WEIGHTS``, which may be of a CNN or of a whole detector.

    Args:
        cfg: of a detector.
        features: names of those wanted, in any order; a network that lacks one of them gives the others.

    Attributes:
        channels, strides: of each feature by name.

    Raises:
        ValueError: if the weights do not hold the whole CNN, or it has none of the features.
    """

    def __init__(self, cfg: CfgNode, features: Sequence[str]) -> None:
        super().__init__()
        self.backbone: Backbone
        self.backbone, self.features = _build(cfg, features)
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty; name the weights of the CNN.")
        checkpointer = UPDETRCheckpointer(self)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        if missing := checkpointer.parameters_not_loaded():
            raise ValueError(
                f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} lacks {len(missing)} parameters of the CNN: {missing[0]} ..."
            )
        shapes = self.backbone.output_shape()
        self.channels = {name: shapes[name].channels for name in self.features}
        self.strides = {name: shapes[name].stride for name in self.features}
        self.image_format = cfg.INPUT.FORMAT
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.pixel_mean = torch.tensor(cfg.MODEL.PIXEL_MEAN, device=self.device).view(-1, 1, 1)
        self.pixel_std = torch.tensor(cfg.MODEL.PIXEL_STD, device=self.device).view(-1, 1, 1)
        self.requires_grad_(False).eval().to(self.device)

    @torch.inference_mode()
    def forward(self, images: Sequence[np.ndarray] | np.ndarray) -> dict[str, Tensor]:
        """
        Args:
            images: RGB uint8 ``[H, W, 3]``, all of one size.

        Returns:
            float32 ``[B, channels, H / stride, W / stride]`` by name.
        """
        pixels = stack_to_tensor(images, self.image_format).to(self.device)
        features = self.backbone((pixels.float() - self.pixel_mean) / self.pixel_std)
        return {name: features[name] for name in self.features}


def _build(cfg: CfgNode, wanted: Sequence[str]) -> tuple[Backbone, list[str]]:
    """The backbone and which of the features it has; Detectron2's ResNets and timm's are told to give them."""
    keys = {
        "build_timm_backbone": "MODEL.TIMM.OUT_FEATURES",
        "build_timm_vit_backbone": "MODEL.TIMM.OUT_FEATURES",
        "build_resnet_backbone": "MODEL.RESNETS.OUT_FEATURES",
    }
    key = keys.get(cfg.MODEL.BACKBONE.NAME)
    candidates = [list(wanted), *([name] for name in reversed(wanted))] if key else [[]]
    problem: ValueError | None = None
    with arguments_as_keys():
        for names in candidates:
            try:
                backbone = build_backbone(changed(cfg, [key, names] if key else []))
            except ValueError as error:  # a vision transformer has one stride only
                problem = problem or error
                continue
            there = [name for name in wanted if name in backbone.output_shape()]
            if there:
                return backbone, there
        raise problem or ValueError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has none of the features {list(wanted)}."
        )
