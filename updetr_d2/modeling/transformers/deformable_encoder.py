"""The encoder of deformable transformers.

``B`` images, ``S`` tokens of all levels, ``C`` channels.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from updetr_d2.modeling.transformers.deformable_layers import DeformableEncoderLayer
from updetr_d2.modeling.transformers.tokens import Tokens


class DeformableEncoder(nn.Module):
    """
    Args:
        layers: one after the other.
        recompute: see :class:`Transformer`.
    """

    def __init__(self, layers: Iterable[DeformableEncoderLayer], *, recompute: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens after all layers."""
        reference = tokens.reference_points()
        values = tokens.values
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                values = checkpoint(layer, values, tokens, reference, use_reentrant=False)
            else:
                values = layer(values, tokens, reference)
        return tokens.with_values(values)
