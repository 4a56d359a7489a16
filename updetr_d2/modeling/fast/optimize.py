"""One call that makes the frozen parts of a model faster, for whoever trains, evaluates or demonstrates it."""

from torch import nn

from updetr_d2.modeling.backbone import TimmBackbone
from updetr_d2.modeling.fast.cudnn_fusion import fuse_blocks
from updetr_d2.modeling.fast.folding import fold_frozen_batchnorm

__all__ = ["optimize_frozen"]


def optimize_frozen(model: nn.Module, *, fuse: bool = False) -> nn.Module:
    """Fold the frozen BatchNorms of the CNN into its convolutions, in place.

    Outputs, gradients, parameters and their names stay the same, up to rounding; so do the outputs of each block.

    Args:
        model: a model with a ``backbone``, Detectron2's or one of timm; others stay as they are.
        fuse: let the blocks of Detectron2's ResNets use cuDNN's fused convolutions as well.

    Returns:
        ``model``.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        fold_frozen_batchnorm(backbone)
        if fuse:
            fuse_blocks(backbone)
        for module in backbone.modules():
            if isinstance(module, TimmBackbone):
                module.fold_frozen()
    return model
