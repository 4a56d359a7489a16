"""Query patches cut, resized and augmented on the model's device, by plans that loader workers have drawn.

The random numbers come from the workers, so that a plan gives the patches that the worker would have made, up to
rounding. Nothing here makes the host wait for the device.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PLAN", "num_patches", "with_patches"]

# Key of a plan in a sample: a dict of ``source``, uint8 RGB [3, H, W]; ``boxes``, int [M, 4] XYXY in its pixels;
# ``changes``, float32 [M, 10], see :func:`augment`; ``size``, side of a patch; ``format``, "RGB" or "BGR".
PLAN = "patch_plan"

# Operations of the color jitter in ``changes``; -1 is none.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_SLOTS = 4
# Weights of red, green and blue in gray (ITU-R 601).
_LUMA = (0.299, 0.587, 0.114)
# Values are rounded down, as torchvision does it, but integers stay.
_ROUND_DOWN = -0.499


def num_patches(sample: dict) -> int:
    """Of a sample with patches or a plan."""
    return len(sample["patches"] if "patches" in sample else sample[PLAN]["boxes"])


def with_patches(samples: Sequence[dict], device: torch.device) -> list[dict]:
    """Samples with ``patches`` in the place of their plans; others stay as they are."""
    planned = [sample for sample in samples if PLAN in sample]
    if not planned:
        return list(samples)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        plans = [sample[PLAN] for sample in planned]
        patches = torch.cat([_cut(plan, device) for plan in plans])
        patches = augment(patches, torch.cat([plan["changes"] for plan in plans]))
        made = iter(patches.to(torch.uint8).split([len(plan["boxes"]) for plan in plans]))
    result = []
    for sample in samples:
        if PLAN in sample:
            own = next(made)
            sample = {**sample, "patches": own.flip(1) if sample[PLAN]["format"] == "BGR" else own}
            del sample[PLAN]
        result.append(sample)
    return result


def _cut(plan: dict, device: torch.device) -> Tensor:
    """Patches [M, 3, size, size], whole numbers in 0–255, before augmentation."""
    source = plan["source"].to(device, non_blocking=True).float()
    x0, y0, x1, y1 = plan["boxes"].to(device, non_blocking=True).float().unbind(dim=1)
    rows = resize_weights(y0, y1 - y0, plan["size"], source.shape[1])
    columns = resize_weights(x0, x1 - x0, plan["size"], source.shape[2])
    return (rows[:, None] @ source @ columns[:, None].transpose(2, 3)).round_().clamp_(0, 255)


def resize_weights(start: Tensor, length: Tensor, size: int, total: int) -> Tensor:
    """Matrices that resize parts of a line with bilinear interpolation and antialiasing.

    Args:
        start, length: ``[P]``, of the parts, px.
        size: px of the results.
        total: px of the line.

    Returns:
        ``[P, size, total]``; rows add up to 1.
    """
    scale = (length / size)[:, None, None]
    center = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    place = torch.arange(total, device=start.device) + 0.5 - start[:, None, None]
    weights = (1 - (place - center).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((place > 0) & (place < length[:, None, None]))
    return weights / weights.sum(dim=-1, keepdim=True)


def augment(patches: Tensor, changes: Tensor) -> Tensor:
    """Change each patch by its row.

    Args:
        patches: ``[P, 3, h, w]``, RGB, whole numbers in 0–255.
        changes: float32 ``[P, 10]`` on the host: operations of the color jitter in their order, their factors (for
            the hue its shift in turns), 1 for grayscale, and the standard deviation of the blur or 0.

    Returns:
        as ``patches``.
    """
    operations, factors = changes[:, :_SLOTS], changes[:, _SLOTS : 2 * _SLOTS]
    blends = torch.where((operations >= 0) & (operations != HUE), factors, 1.0)
    shares = torch.stack([blends, *((operations == kind).float() for kind in (CONTRAST, SATURATION))])
    shares = shares.to(patches.device, non_blocking=True)[..., None, None, None]
    for slot in range(_SLOTS):
        factor, is_contrast, is_saturation = shares[:, :, slot]
        gray = _gray(patches)
        other = is_contrast * gray.mean(dim=(1, 2, 3), keepdim=True) + is_saturation * gray
        blended = factor * patches + (1 - factor) * other + _ROUND_DOWN * (factor != 1)
        patches = blended.round().clamp(0, 255)
        turned = (operations[:, slot] == HUE).nonzero()[:, 0]
        patches = _change(patches, turned, _turn_hue, factors[turned, slot])
    grayed = changes[:, 2 * _SLOTS].nonzero()[:, 0]
    patches = _change(patches, grayed, lambda x, _: _gray(x).expand_as(x), changes[grayed, 0])
    sigma = changes[:, 2 * _SLOTS + 1]
    blurred = sigma.nonzero()[:, 0]
    radius = max(1, round(3 * sigma.max().item()))
    return _change(patches, blurred, functools.partial(_blur, radius=radius), sigma[blurred])


def _change(
    patches: Tensor, rows: Tensor, function: Callable[[Tensor, Tensor], Tensor], values: Tensor
) -> Tensor:
    """Change the patches of some rows by a function of them and a value for each; both are on the host."""
    if not len(rows):
        return patches
    rows, values = (each.to(patches.device, non_blocking=True) for each in (rows, values))
    changed = function(patches.index_select(0, rows), values.to(patches.dtype))
    return patches.index_copy(0, rows, changed.round().clamp(0, 255))


def _gray(patches: Tensor) -> Tensor:
    """``[P, 1, h, w]``, whole numbers."""
    red, green, blue = patches.unbind(dim=1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).round()[:, None]


def _turn_hue(patches: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a part of the circle each, through hue, saturation and value."""
    red, green, blue = patches.unbind(dim=1)
    value, least = patches.amax(dim=1), patches.amin(dim=1)
    chroma = value - least
    divisor = chroma.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * shift[:, None, None]
    channels = []
    for offset in (5, 3, 1):  # of red, green and blue, in sixths of the circle
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _blur(patches: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur with a Gaussian of its own standard deviation (px) each, at most ``radius`` / 3.

    The border pixels extend outwards.
    """
    count, channels, height, width = patches.shape
    offsets = torch.arange(-radius, radius + 1, device=patches.device)
    kernels = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernels = kernels * (offsets.abs() <= (3 * sigma[:, None]).round().clamp(min=1))
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(patches.flatten(0, 1)[None], [radius] * 4, mode="replicate")
    groups = count * channels
    planes = F.conv2d(planes, kernels[:, None, :, None], groups=groups)
    planes = F.conv2d(planes, kernels[:, None, None, :], groups=groups)
    return planes.view(count, channels, height, width)
