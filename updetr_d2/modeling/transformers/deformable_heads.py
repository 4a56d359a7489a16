"""Class and box heads of deformable transformers, with the official initialization."""

import math

from torch import nn

from updetr_d2.modeling.mlp import MLP


def class_head(hidden_dim: int, num_logits: int, *, prior: float) -> nn.Linear:
    """A class head that predicts a share ``prior`` of each class at first (Lin et al., arXiv 1708.02002)."""
    head = nn.Linear(hidden_dim, num_logits)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def box_head(hidden_dim: int, *, log_size: float = 0.0) -> MLP:
    """A box head that changes nothing, but for the logits of width and height."""
    head = MLP(hidden_dim, hidden_dim, 4, num_layers=3)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    nn.init.constant_(last.bias[2:], log_size)
    return head


def layer_head(heads: nn.Module, layer: int) -> nn.Module:
    """The head of a layer, of a list or one for all."""
    return heads[layer] if isinstance(heads, nn.ModuleList) else heads
