"""Detectors whose object queries carry query patches: what pre-training and one-shot detection share."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from updetr_d2.modeling.meta_arch.detr import DETR


class PatchQueryDETR(DETR):
    """DETR with patches in its queries: encoded by its own CNN, pooled, projected (UP-DETR, Section 3.1).

    Args:
        **detr_args: as for :class:`DETR`.
    """

    @configurable
    def __init__(self, **detr_args: Any) -> None:
        super().__init__(**detr_args)
        self.patch2query = nn.Linear(self.feature_dim, self.transformer.hidden_dim)

    def pooled_patches(self, batched_inputs: Sequence[dict]) -> tuple[Tensor, ...]:
        """Encode the query patches of a whole batch with the model's CNN in one pass.

        Args:
            batched_inputs: samples with ``patches`` [m, 3, h, w] in 0–255, all of one size; m may differ.

        Returns:
            the globally pooled features ``[m, D]`` of the patches of each image.
        """
        patches = torch.cat([x["patches"].to(self.device, non_blocking=True) for x in batched_inputs])
        pooled = self.backbone(self.normalize(patches))[self.in_feature].mean(dim=(2, 3))
        return pooled.split([len(x["patches"]) for x in batched_inputs])
