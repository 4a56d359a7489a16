"""Models of the recipes with random weights and samples, in full or tiny."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks

from benchmarks.speed import synthetic
from updetr_d2.config.files import get_config
from updetr_d2.modeling.meta_arch import DETR

# What makes a recipe tiny.
SMALL = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8),
    *("MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.DIM_FEEDFORWARD", 128),
)
NUM_THINGS = 80


def build(recipe: str, device: str, small: bool, *options: object) -> tuple[CfgNode, DETR, list[dict]]:
    """Config, model in training mode and a batch of samples of a recipe.

    Args:
        recipe: relative to ``configs/``.
        device: of the model.
        small: tiny model and images.
        options: alternating keys and values.
    """
    cfg = get_config(recipe)
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *(SMALL if small else ()), *options])
    cfg.MODEL.MASK_HEAD.NUM_THING_CLASSES = NUM_THINGS if cfg.MODEL.MASK_ON else 0
    batch_size, size = (2, (64, 96)) if small else (32, (450, 600))
    samples = synthetic.random_samples(cfg, batch_size=batch_size, size=size, num_targets=7)
    if cfg.MODEL.MASK_ON:
        for sample in samples:
            sample["instances"].gt_masks = BitMasks(torch.rand(7, *size) > 0.5)
    return cfg, synthetic.build_random_model(cfg).train(), samples
