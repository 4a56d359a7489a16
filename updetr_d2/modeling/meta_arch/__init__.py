"""Meta-architectures, registered in Detectron2's ``META_ARCH_REGISTRY``."""

from updetr_d2.modeling.meta_arch.detr import DETR
from updetr_d2.modeling.meta_arch.object_detr import ObjectDETR
from updetr_d2.modeling.meta_arch.oneshot_detr import OneShotDETR
from updetr_d2.modeling.meta_arch.panoptic_detr import PanopticDETR
from updetr_d2.modeling.meta_arch.updetr import UPDETR

__all__ = ["DETR", "UPDETR", "ObjectDETR", "OneShotDETR", "PanopticDETR"]
