"""One subclass of each meta-architecture; they inherit the task."""

from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from updetr_d2.modeling.meta_arch import DETR, UPDETR, OneShotDETR, PanopticDETR


@META_ARCH_REGISTRY.register()
class ToyDETR(DETR):
    """As its base."""


@META_ARCH_REGISTRY.register()
class ToyUPDETR(UPDETR):
    """Has a module that only its pre-training needs."""

    pretraining_only = (*UPDETR.pretraining_only, "pretext_head")

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        self.pretext_head = nn.Linear(4, 4)


@META_ARCH_REGISTRY.register()
class ToyOneShotDETR(OneShotDETR):
    """As its base."""


@META_ARCH_REGISTRY.register()
class ToyPanopticDETR(PanopticDETR):
    """As its base."""
