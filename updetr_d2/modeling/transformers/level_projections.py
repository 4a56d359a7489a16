"""From the backbone's features to the levels of a deformable transformer."""

from collections.abc import Sequence

from torch import Tensor, nn

# Groups of the norm behind each projection, as in the official code.
NORM_GROUPS = 32


class LevelProjections(nn.ModuleList):
    """A convolution and a group norm for each level; further levels are made of the last feature.

    Args:
        channels: of the backbone's features.
        hidden_dim: channels C, a multiple of 32.
        num_levels: V, at least the number of features.
    """

    def __init__(self, channels: Sequence[int], hidden_dim: int, *, num_levels: int) -> None:
        projections = [nn.Conv2d(each, hidden_dim, kernel_size=1) for each in channels]
        in_channels = channels[-1]
        for _ in range(num_levels - len(channels)):
            projections.append(nn.Conv2d(in_channels, hidden_dim, kernel_size=3, stride=2, padding=1))
            in_channels = hidden_dim
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        # A level of a small image may be one token, and a group needs two values.
        groups = min(NORM_GROUPS, hidden_dim // 2)
        super().__init__(nn.Sequential(conv, nn.GroupNorm(groups, hidden_dim)) for conv in projections)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features ``[B, D, h, w]`` -> levels ``[B, C, h, w]``."""
        levels = [projection(feature) for projection, feature in zip(self, features)]
        last = features[-1]
        for i in range(len(features), len(self)):
            last = self[i](last)
            levels.append(last)
        return levels
