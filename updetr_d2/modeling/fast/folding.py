"""Frozen BatchNorms folded into the convolutions before them: the same numbers without a pass over the features.

A frozen norm is the affine map y = s·x + b per channel, so norm(conv(x; w)) = conv(x; s·w) + b. State dicts keep
the separate tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FoldedConv2d", "fold_frozen_batchnorm"]


def fold_frozen_batchnorm(module: nn.Module) -> nn.Module:
    """Replace, in place, every Detectron2 convolution that has a frozen BatchNorm by a :class:`FoldedConv2d`.

    Args:
        module: a backbone; parameters, buffers and their names stay the same.

    Returns:
        ``module``.
    """
    for child_name, child in module.named_children():
        if type(child) is Conv2d and type(child.norm) is FrozenBatchNorm2d:
            setattr(module, child_name, FoldedConv2d(child))
        else:
            fold_frozen_batchnorm(child)
    return module


class FoldedConv2d(Conv2d):
    """A convolution and its frozen BatchNorm in one, equal to the two up to rounding.

    While no gradient is wanted the folded weight is kept, in the type of the features, so that autocast has
    nothing to convert, and in the memory format channels-last, which makes the features channels-last as well. A
    change of the tensors it comes from, such as loading a checkpoint, is noticed. As PyTorch does not count what
    fused optimizers and ``.data`` change, ``train()``, ``eval()`` and a pass with gradients drop it, too. A weight
    that trains is folded in every step.

    Args:
        conv: the convolution to replace; its parameters are taken over, not copied.
    """

    def __init__(self, conv: Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            norm=conv.norm,
            activation=conv.activation,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self._cache: tuple | None = None
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded(x)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does what the two do; differentiable."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        return self.weight * scale[:, None, None, None], norm.bias + bias * scale

    @property
    def wants_gradient(self) -> bool:
        trains = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        return trains and torch.is_grad_enabled()

    def folded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`fold` for features like ``x``, from the cache if no gradient is wanted."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.fold()
        if self.wants_gradient:
            self._cache = None  # a step of the optimizer may follow
            return self.fold()
        sources = self._sources()
        if any(source.is_inference() for source in sources):  # their changes are not counted
            return self.fold()
        key = (x.dtype, *((source.data_ptr(), source._version) for source in sources))
        if self._cache is None or self._cache[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # so that training may use it as well
                weight, bias = self.fold()
                weight = weight.to(dtype=x.dtype, memory_format=torch.channels_last)
                self._cache = (key, weight, bias.to(x.dtype))
        return self._cache[1:]

    def _sources(self) -> tuple[Tensor, ...]:
        norm = self.norm
        sources = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return sources if self.bias is None else (*sources, self.bias)

    def train(self, mode: bool = True) -> "FoldedConv2d":
        self._cache = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FoldedConv2d":
        self._cache = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict:
        """Without the cache: copies and pickles make their own."""
        return {**self.__dict__, "_cache": None}
