"""Features of query patches: what UP-DETR's pre-training and one-shot detection share (paper, Section 3.1)."""

import torch
from torch import Tensor

from updetr_d2.modeling.meta_arch.detr import DETR


def encode_patches(model: DETR, batched_inputs: list[dict]) -> tuple[Tensor, ...]:
    """Encode the query patches of a whole batch with the model's CNN in one pass.

    Args:
        model: its backbone and normalisation are used.
        batched_inputs: samples with ``patches`` [m, 3, h, w] in 0–255, all of one size; m may differ.

    Returns:
        the globally pooled features ``[m, D]`` of the patches of each image.
    """
    patches = torch.cat([x["patches"].to(model.device, non_blocking=True) for x in batched_inputs])
    pooled = model.backbone(model.normalize(patches))[model.in_feature].mean(dim=(2, 3))
    return pooled.split([len(x["patches"]) for x in batched_inputs])
