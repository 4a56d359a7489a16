"""From a config to a model: errors of constructors, which name arguments, name the keys of the config."""

import contextlib
import re
from collections.abc import Iterator

from detectron2 import modeling
from detectron2.config import CfgNode
from torch import nn

# Arguments of constructors in ``modeling/`` by the key that ``from_config`` takes them from.
ARGUMENT_KEYS = {
    "box_refine": "MODEL.DEFORMABLE.BOX_REFINE",
    "class_prior": "MODEL.DEFORMABLE.CLASS_PRIOR",
    "cost_bbox": "MODEL.MATCHER.COST_BBOX",
    "cost_class": "MODEL.MATCHER.COST_CLASS",
    "cost_giou": "MODEL.MATCHER.COST_GIOU",
    "distance": "MODEL.CRITERION.FEATURE_LOSS",
    "fpn_channels": "MODEL.MASK_HEAD.IN_FEATURES",
    "fpn_features": "MODEL.MASK_HEAD.IN_FEATURES",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "hidden_dim": "MODEL.DETR.HIDDEN_DIM",
    "importance_sample_ratio": "MODEL.MASK_HEAD.IMPORTANCE_SAMPLE_RATIO",
    "in_feature": "MODEL.DETR.IN_FEATURE",
    "in_features": "MODEL.DEFORMABLE.IN_FEATURES",
    "iou_threshold": "MODEL.MATCHER.IOU_THRESH",
    "look_forward_twice": "MODEL.DEFORMABLE.LOOK_FORWARD_TWICE",
    "mask_ratio": "MODEL.UPDETR.MASK_RATIO",
    "max_per_target": "MODEL.MATCHER.MAX_PER_TARGET",
    "mixed_selection": "MODEL.DEFORMABLE.MIXED_SELECTION",
    "name": "MODEL.TIMM.NAME",
    "num_classes": "MODEL.DETR.NUM_CLASSES",
    "num_heads": "MODEL.DETR.NHEADS",
    "num_levels": "MODEL.DEFORMABLE.NUM_LEVELS",
    "num_patches": "MODEL.UPDETR.NUM_PATCHES",
    "num_points": "MODEL.MASK_HEAD.TRAIN_NUM_POINTS",
    "num_queries": "MODEL.DETR.NUM_QUERIES",
    "num_thing_classes": "MODEL.MASK_HEAD.NUM_THING_CLASSES",
    "out_features": "MODEL.TIMM.OUT_FEATURES",
    "oversample_ratio": "MODEL.MASK_HEAD.OVERSAMPLE_RATIO",
    "proposal_size": "MODEL.DEFORMABLE.PROPOSAL_SIZE",
    "pyramid_channels": "MODEL.TIMM.PYRAMID_CHANNELS",
    "target_feature": "MODEL.UPDETR.TARGET_FEATURE",
    "two_stage": "MODEL.DEFORMABLE.TWO_STAGE",
}


def build_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``.

    Raises:
        ValueError: naming the key of a value that a constructor refuses.
    """
    with arguments_as_keys():
        return modeling.build_model(cfg)


@contextlib.contextmanager
def arguments_as_keys() -> Iterator[None]:
    """Put the config's keys into errors that name arguments in backquotes, such as `` `hidden_dim` ``."""
    try:
        yield
    except ValueError as error:
        message = re.sub(r"`(\w+)`", lambda match: ARGUMENT_KEYS.get(match[1], match[0]), str(error))
        if message == str(error):
            raise
        raise ValueError(message) from error
