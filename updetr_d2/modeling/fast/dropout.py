"""Dropout that is not the most expensive part of a transformer on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout", "dropout"]

# A random number of 16 bits decides on an element; 64-bit numbers are drawn for four elements each.
_BITS = 16


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero elements with probability ``p`` and divide the others by 1 − p.

    On a CPU torch draws a random number in single precision for every element, one after the other, which takes
    longer than the layers around it. Here 16 bits decide, so the probability is the multiple of 2**-16 next to
    ``p`` and the division is by its complement.

    Args:
        x: any shape, floating point.
        p: probability, in [0, 1).
    """
    if x.device.type != "cpu" or p == 0 or torch.compiler.is_compiling():
        return F.dropout(x, p)
    threshold = round(p * 2**_BITS)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    uniform = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    # Written as 0 or 1 in the type of x at once, without the slow way through bool.
    kept = torch.ge(uniform, threshold - 2 ** (_BITS - 1), out=torch.empty_like(x, requires_grad=False))
    return x * kept.mul_(1 / (1 - threshold / 2**_BITS))


class Dropout(nn.Dropout):
    """:func:`dropout` in training, nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
