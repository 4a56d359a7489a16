"""Residual blocks whose convolutions add bias and shortcut and apply the ReLU themselves, by cuDNN.

On a GPU these are passes over memory of their own, which take a frozen CNN longer than its arithmetic.
"""

import logging
from collections.abc import Callable

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from updetr_d2.modeling.fast.folding import FoldedConv2d

logger = logging.getLogger(__name__)

# Largest difference to the plain block, as a share of the standard deviation of its features: several roundings of
# the type, TF32 for float32.
_TOLERANCE = {torch.float32: 0.02, torch.float16: 0.02, torch.bfloat16: 0.1}


def fuse_blocks(backbone: nn.Module) -> None:
    """Let the residual blocks of a folded backbone, in place, use cuDNN's fused convolutions where they can.

    That is on GPUs, without gradients, unless somebody hooks into the convolutions. The first time with a type of
    features each block compares itself with the plain one, and stays plain if the results differ or cuDNN refuses.

    Args:
        backbone: after :func:`~.folding.fold_frozen_batchnorm`.
    """
    for module in backbone.modules():
        fused = _FUSED.get(type(module))
        if fused is not None and all(type(conv) is FoldedConv2d for conv in _convolutions(module)):
            module.__class__ = fused  # with its parameters, their names and its place


def _convolutions(block: nn.Module) -> list[nn.Module]:
    return [child for child in block.children() if isinstance(child, nn.Conv2d)]


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda and torch.backends.cudnn.enabled


class _FusedBlock(nn.Module):
    """What both kinds of blocks share: when to fuse, and the check."""

    plain: Callable[[Tensor], Tensor]
    fused: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if not self._can_fuse(x):
            return self.plain(x)
        known: dict[torch.dtype, bool] = self.__dict__.setdefault("_fits", {})
        if x.dtype not in known:
            known[x.dtype] = self._fits_plain(x)
        return self.fused(x) if known[x.dtype] else self.plain(x)

    def _can_fuse(self, x: Tensor) -> bool:
        if not _on_gpu(x) or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        convolutions = _convolutions(self)
        wants_gradient = torch.is_grad_enabled() and (
            x.requires_grad or any(conv.wants_gradient for conv in convolutions)
        )
        hooked = any(conv._forward_hooks or conv._forward_pre_hooks for conv in convolutions)
        return not wants_gradient and not hooked and x.dtype in _TOLERANCE

    def _fits_plain(self, x: Tensor) -> bool:
        expected = self.plain(x).float()
        try:
            difference = (self.fused(x).float() - expected).abs().max()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        else:
            share = float(difference / expected.std().clamp(min=1e-12))
            if share <= _TOLERANCE[x.dtype]:  # not if it is no number
                return True
            reason = f"results differ by {share:.2g} standard deviations"
        logger.warning("cuDNN's fused convolutions are not used for %s: %s.", x.dtype, reason)
        return False

    def _convolution_relu(self, name: str, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """max(0, convolution of x + shortcut)"""
        conv = self.get_submodule(name)
        assert isinstance(conv, FoldedConv2d)  # fuse_blocks has looked
        weight, bias = conv.folded(x)
        options = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if shortcut is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *options)
        return torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, *options)

    def _shortcut(self, x: Tensor) -> Tensor:
        projection = dict(self.named_children()).get("shortcut")
        return x if projection is None else projection(x)


class FusedBasicBlock(_FusedBlock, BasicBlock):
    """Two convolutions and a shortcut."""

    plain = BasicBlock.forward

    def fused(self, x: Tensor) -> Tensor:
        return self._convolution_relu("conv2", self._convolution_relu("conv1", x), self._shortcut(x))


class FusedBottleneckBlock(_FusedBlock, BottleneckBlock):
    """Three convolutions and a shortcut."""

    plain = BottleneckBlock.forward

    def fused(self, x: Tensor) -> Tensor:
        out = self._convolution_relu("conv2", self._convolution_relu("conv1", x))
        return self._convolution_relu("conv3", out, self._shortcut(x))


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: FusedBasicBlock,
    BottleneckBlock: FusedBottleneckBlock,
}
