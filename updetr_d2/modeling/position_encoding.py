"""Sine position encoding of image features (DETR, Appendix A.4), after "Attention is all you need"."""

import math

import torch
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """Normalised 2-D sine encoding: half of the channels encode y, the other half x.

    Args:
        hidden_dim: number of channels C of the encoding, a multiple of 4.
        temperature: base of the geometric series of wavelengths.
        scale: the normalised coordinates span (0, scale], in radians.
        eps: guards the division for fully padded rows or columns.
        offset: added to the counted pixels before they are normalized; −0.5 encodes the centers (Deformable DETR).
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        temperature: float = 10000.0,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_dim % 4:
            raise ValueError(f"`hidden_dim` is {hidden_dim}; sine encoding needs a multiple of 4.")
        self.num_features = hidden_dim // 2
        self.temperature = temperature
        self.scale = scale
        self.eps = eps
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """
        Args:
            padding_mask: bool ``[B, H, W]``, True on padding.

        Returns:
            float32 ``[B, C, H, W]``; coordinates count the pixels that are not padding.
        """
        # Counted in integers: GPUs have no deterministic sum of floats in a row.
        valid = ~padding_mask
        y = valid.cumsum(dim=1).float()
        x = valid.cumsum(dim=2).float()
        y = (y + self.offset) / (y[:, -1:, :] + self.eps)
        x = (x + self.offset) / (x[:, :, -1:] + self.eps)
        return self.encode(torch.stack([x, y], dim=-1)).permute(0, 3, 1, 2)

    def encode(self, points: Tensor) -> Tensor:
        """Points (x, y) as fractions of the image ``[..., 2]`` -> float32 ``[..., C]``."""
        x, y = (points * self.scale).unbind(dim=-1)
        features = [sine_features(each, self.num_features, self.temperature) for each in (y, x)]
        return torch.cat(features, dim=-1)


def sine_features(coordinate: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """``[...]`` in radians -> ``[..., num_features]`` with sines and cosines of many wavelengths interleaved."""
    pairs = torch.arange(num_features // 2, dtype=torch.float32, device=coordinate.device)
    wavelengths = temperature ** (2 * pairs / num_features)
    angles = coordinate[..., None] / wavelengths
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
