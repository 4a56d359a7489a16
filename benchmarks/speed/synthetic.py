"""Models with random weights and batches of random numbers: what a step costs does not depend on the values."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances

from updetr_d2.config.build import build_model
from updetr_d2.modeling.fast.optimize import optimize_frozen
from updetr_d2.modeling.meta_arch import DETR
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.tasks import task_of
from updetr_d2.tasks.pretraining import PretrainingTask


def build_random_model(cfg: CfgNode) -> DETR:
    """The model of a config with the same random weights every time, and BatchNorm statistics that matter."""
    torch.manual_seed(0)
    model: Any = build_model(cfg)
    optimize_frozen(model, fuse=cfg.MODEL.FUSE_FROZEN)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.3, 0.7)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def random_boxes(count: int, height: int, width: int) -> torch.Tensor:
    """XYXY boxes ``[count, 4]`` of at least a pixel inside an image."""
    corners = torch.rand(count, 2, 2).sort(dim=1).values
    corners = corners * torch.tensor([width - 1.0, height - 1.0])
    corners[:, 1] += 1
    return corners.flatten(1)


def random_samples(cfg: CfgNode, *, batch_size: int, size: tuple[int, int], num_targets: int) -> list[dict]:
    """Training samples as the mappers make them.

    Args:
        cfg: decides on classes, and on query patches for UPDETR and OneShotDETR.
        batch_size: number of samples.
        size: (height, width) of the images in px.
        num_targets: boxes of each image; UPDETR has one for each patch instead.
    """
    torch.manual_seed(1)
    needs = task_of(cfg).query_patches(cfg)
    num_patches = 0 if needs is None else needs.limit or 1
    side = cfg.INPUT.QUERY_PATCH.SIZE
    return [_random_sample(cfg, size, num_patches, side, num_targets) for _ in range(batch_size)]


def _random_sample(
    cfg: CfgNode, size: tuple[int, int], num_patches: int, patch_side: int, num_targets: int
) -> dict:
    height, width = size
    pretraining = isinstance(task_of(cfg), PretrainingTask)
    count = num_patches if pretraining else num_targets
    classes = torch.full((count,), cfg.MODEL.DETR.NUM_CLASSES - 1)
    if not pretraining:
        classes = torch.randint(cfg.MODEL.DETR.NUM_CLASSES, (count,))
    sample = {
        "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
        "height": height,
        "width": width,
        "instances": Instances(size, gt_boxes=Boxes(random_boxes(count, height, width)), gt_classes=classes),
    }
    if num_patches:
        shape = (num_patches, 3, patch_side, patch_side)
        sample["patches"] = torch.randint(256, shape, dtype=torch.uint8)
    return sample


def random_targets(cfg: CfgNode, *, batch_size: int, num_targets: int, device: torch.device) -> BatchTargets:
    """Targets of a batch, the same number in every image."""
    torch.manual_seed(2)
    instances = [
        Instances(
            (480, 640),
            gt_boxes=Boxes(random_boxes(num_targets, 480, 640)),
            gt_classes=torch.randint(cfg.MODEL.DETR.NUM_CLASSES, (num_targets,)),
        )
        for _ in range(batch_size)
    ]
    return BatchTargets.from_instances(instances, device)


def random_heads(cfg: CfgNode, *, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Outputs of the class and box heads of all decoder layers."""
    torch.manual_seed(3)
    shape = (cfg.MODEL.DETR.DEC_LAYERS, batch_size, cfg.MODEL.DETR.NUM_QUERIES)
    return {
        "pred_logits": torch.randn(*shape, cfg.MODEL.DETR.NUM_CLASSES + 1, device=device),
        "pred_boxes": torch.rand(*shape, 4, device=device).clamp(min=0.01),
    }
