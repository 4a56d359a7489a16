"""Blocks of Detectron2's ResNet whose convolutions add the shortcut and apply the ReLU themselves, on CPUs.

oneDNN, PyTorch's library for CPUs, does this while a result is still in the cache; as separate steps they cost
as much memory traffic as the convolution. It is what ``torch.compile`` calls, without the compilation.
"""

import functools
from collections.abc import Callable

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.fast.folding import FoldedConv2d

__all__ = ["fuse_resnet_blocks"]


def fuse_resnet_blocks(module: nn.Module) -> nn.Module:
    """Replace, in place, the stem and the residual blocks whose convolutions are all :class:`FoldedConv2d`.

    Args:
        module: a backbone; parameters, buffers and their names stay the same.

    Returns:
        ``module``.
    """
    fused_types = {BasicStem: FusedStem, BasicBlock: FusedResidualBlock, BottleneckBlock: FusedResidualBlock}
    before = None
    for name, child in module.named_children():
        if type(child) in fused_types and all(isinstance(x, FoldedConv2d) for x in child.children()):
            child = fused_types[type(child)](child)
            if isinstance(module, nn.Sequential) and before is not None:
                child.block_before = (before,)
            setattr(module, name, child)
        else:
            fuse_resnet_blocks(child)
        before = child
    return module


class _FusedBlock(nn.Module):
    """Takes the place of a block of Detectron2's; does what the block does where nothing can be fused.

    Args:
        block: its convolutions are taken over, not copied.

    Attributes:
        block_before: the block of the same stage whose output is the input here and nowhere else, if there is
            one; in a tuple, as it is no part of this block.
    """

    block_before: tuple[nn.Module, ...] = ()

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = block.in_channels, block.out_channels, block.stride
        self._plain_forward: Callable[[nn.Module, Tensor], Tensor] = type(block).forward
        self._freeze: Callable[[nn.Module], nn.Module] = type(block).freeze
        for name, conv in block.named_children():
            self.add_module(name, conv)
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        if all(_can_fuse(conv, x) for conv in self.children()):
            return self.fused_forward(x)
        return self._plain_forward(self, x)

    @property
    def may_overwrite_input(self) -> bool:
        """Whether nothing else has the input, such as a hook, so that the output may take its memory."""
        return any(not block._forward_hooks for block in self.block_before)

    def freeze(self) -> nn.Module:
        """As ``CNNBlockBase.freeze``."""
        return self._freeze(self)


class FusedStem(_FusedBlock):
    """Convolution, ReLU and max pooling."""

    def fused_forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(_convolve(self.conv1, x, "relu"), kernel_size=3, stride=2, padding=1)


class FusedResidualBlock(_FusedBlock):
    """Two or three convolutions, a shortcut with or without one, ReLUs."""

    def __init__(self, block: BasicBlock | BottleneckBlock) -> None:
        super().__init__(block)
        if block.shortcut is None:
            self.shortcut = None

    def fused_forward(self, x: Tensor) -> Tensor:
        block_input = x
        *convs, last = (conv for name, conv in self.named_children() if name != "shortcut")
        shortcut = x if self.shortcut is None else _convolve(self.shortcut, x, "none")
        for conv in convs:
            x = _convolve(conv, x, "relu")
        if shortcut is block_input and not self.may_overwrite_input:
            shortcut = shortcut.clone()
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # in the memory of the shortcut
            *(shortcut, x, *last.folded(x), last.padding, last.stride, last.dilation, last.groups),
            *("add", 1.0, "relu", [], None),
        )


def _convolve(conv: FoldedConv2d, x: Tensor, activation: str) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        *(x, *conv.folded(x), conv.padding, conv.stride, conv.dilation, conv.groups),
        *(activation, [], None),
    )


def _can_fuse(conv: FoldedConv2d, x: Tensor) -> bool:
    """Whether the fused functions, which have no derivative, do what the convolution and what follows would."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not conv.wants_gradient
        and conv.activation is None
        and conv.padding_mode == "zeros"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not _autocast_on_cpu()
        and _fused_convolutions_work()
    )


def _autocast_on_cpu() -> bool:
    try:
        return torch.is_autocast_enabled("cpu")
    except TypeError:  # torch 2.3
        return torch.is_autocast_cpu_enabled()


@functools.cache
def _fused_convolutions_work() -> bool:
    """Whether this PyTorch has the functions, which are not part of its documented interface, as we know them."""
    generator = torch.Generator().manual_seed(0)
    x, weight, other = (
        torch.randn(shape, generator=generator) for shape in ((1, 2, 4, 4), (3, 2, 1, 1), (1, 3, 4, 4))
    )
    geometry = ([0, 0], [1, 1], [1, 1], 1)
    try:
        relu = torch.ops.mkldnn._convolution_pointwise(x, weight, None, *geometry, "relu", [], None)
        add_relu = torch.ops.mkldnn._convolution_pointwise_.binary(
            other.clone(), x, weight, None, *geometry, "add", 1.0, "relu", [], None
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
    plain = F.conv2d(x, weight)
    return torch.allclose(relu, plain.relu(), atol=1e-5) and torch.allclose(
        add_relu, (plain + other).relu(), atol=1e-5
    )
