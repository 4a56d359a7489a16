"""Frozen BatchNorms of timm networks folded into their convolutions, as ``folding`` does for Detectron2's."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

logger = logging.getLogger(__name__)


class FoldedTimmNet:
    """A copy of a frozen network that computes the same features in fewer passes, in channels-last order.

    It is made when it is first used, and again when a tensor of the network has changed, or after :meth:`drop`.

    Args:
        net: any timm ``features_only`` network whose BatchNorms are frozen.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._key: tuple | None = None
        self._folded = net

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Features of normalised images [B, C, H, W], without gradients."""
        tensors = tuple(self.net.state_dict(keep_vars=True).values())
        if any(tensor.is_inference() for tensor in tensors):  # their changes are not counted
            return self.net(images)
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.net.modules()):
            return self.net(images)  # whoever looks at the blocks gets to see them
        key = tuple((tensor.data_ptr(), tensor._version, tensor.device, tensor.dtype) for tensor in tensors)
        with torch.no_grad():
            if key != self._key:
                self._folded = self._fold(images[:1])
                self._key = key
            return self._folded(images.contiguous(memory_format=torch.channels_last))

    def drop(self) -> None:
        """Forget the copy, as the network may have changed in ways that PyTorch does not count."""
        self._key, self._folded = None, self.net

    def _fold(self, example: Tensor) -> nn.Module:
        folded = copy.deepcopy(self.net)
        if not _fold_neighbours(folded):
            return self.net
        # The types of ``Module.to`` lack the form with a memory format.
        folded.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Modules may run in another order than they were registered in.
        # TF32, which GPUs use for convolutions unless told otherwise, rounds by more than the tolerance.
        exact = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
        with torch.autocast(example.device.type, enabled=False), exact:
            expected, found = self.net(example), folded(example)
        if all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.std())) for a, b in zip(expected, found)):
            return folded
        logger.warning(
            "BatchNorms of this timm network cannot be folded into its convolutions; it runs as it is."
        )
        return self.net


def _fold_neighbours(module: nn.Module) -> int:
    """Fold, in place, every frozen norm that is registered right after a convolution; return their number."""
    from timm.layers import FrozenBatchNormAct2d

    count, last = 0, None
    for name, child in module.named_children():
        if isinstance(child, (FrozenBatchNorm2d, FrozenBatchNormAct2d)) and isinstance(last, nn.Conv2d):
            norm: Any = child  # timm and torchvision have no types
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = -norm.running_mean if last.bias is None else last.bias - norm.running_mean
            last.weight = nn.Parameter(last.weight * scale[:, None, None, None], requires_grad=False)
            last.bias = nn.Parameter(norm.bias + shift * scale, requires_grad=False)
            after = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
            setattr(module, name, nn.Sequential(*after))
            count += 1
        else:
            count += _fold_neighbours(child)
        last = child
    return count
