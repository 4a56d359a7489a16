"""Models, matcher, losses and post-processing; importing registers them."""

from updetr_d2.modeling.backbone import TimmBackbone
from updetr_d2.modeling.criterion import CRITERION_REGISTRY, SetCriterion
from updetr_d2.modeling.matcher import MATCHER_REGISTRY, HungarianMatcher
from updetr_d2.modeling.meta_arch import DETR, UPDETR, OneShotDETR, PanopticDETR
from updetr_d2.modeling.vit_backbone import VisionTransformerBackbone

__all__ = [
    "CRITERION_REGISTRY",
    "DETR",
    "MATCHER_REGISTRY",
    "UPDETR",
    "HungarianMatcher",
    "OneShotDETR",
    "PanopticDETR",
    "SetCriterion",
    "TimmBackbone",
    "VisionTransformerBackbone",
]
