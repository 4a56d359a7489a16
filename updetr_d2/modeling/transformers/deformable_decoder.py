"""The decoder of deformable transformers, which moves boxes from layer to layer.

``B`` images, ``N`` queries, ``V`` levels, ``L`` layers, ``C`` channels.
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from updetr_d2.modeling.transformers.deformable_heads import layer_head
from updetr_d2.modeling.transformers.deformable_layers import DeformableDecoderLayer
from updetr_d2.modeling.transformers.proposals import DecoderInput
from updetr_d2.modeling.transformers.tokens import Tokens


class DeformableDecoder(nn.Module):
    """
    Args:
        layers: one after the other.
        box_refine: each layer corrects the boxes of the one before.
        look_forward_twice: boxes of a layer are trained through those of the layer before.
        recompute: see :class:`Transformer`.
    """

    # Smallest distance of a box's coordinates from 0 and 1 that their logits tell.
    eps = 1e-5

    def __init__(
        self,
        layers: Iterable[DeformableDecoderLayer],
        *,
        box_refine: bool,
        look_forward_twice: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.box_refine = box_refine
        self.look_forward_twice = look_forward_twice
        self.recompute = recompute

    def forward(
        self, tokens: Tokens, start: DecoderInput, attn_mask: Tensor | None, bbox_embed: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: the encoder's output.
            start: the queries.
            attn_mask: bool ``[N, N]``, True where one query must not attend to another, or None.
            bbox_embed: the box heads.

        Returns:
            states ``[L, B, N, C]`` and boxes ``[L, B, N, 4]`` of all layers.
        """
        content, reference = start.content, start.reference
        before = reference  # what the boxes of a layer are trained through
        states, boxes = [], []
        for i, layer in enumerate(self.layers):
            run = functools.partial(
                layer,
                position=self.query_position(start, tokens, reference),
                reference=tokens.in_levels(reference),
                tokens=tokens,
                allowed=None if attn_mask is None else ~attn_mask,
            )
            if self.recompute and torch.is_grad_enabled():
                content = checkpoint(run, content, use_reentrant=False)
            else:
                content = run(content)
            state = self.normalize_state(content)
            head = layer_head(bbox_embed, i)
            boxes.append(self.move_boxes(head, state, before))
            states.append(state)
            if self.box_refine:
                moved = (
                    boxes[-1]
                    if before is reference and state is content
                    else self.move_boxes(head, content, reference)
                )
                reference = moved.detach()
                before = moved if self.look_forward_twice else reference
        return torch.stack(states), torch.stack(boxes)

    def query_position(self, start: DecoderInput, tokens: Tokens, reference: Tensor) -> Tensor:
        """Position ``[B, N, C]`` of the queries in a layer."""
        assert start.position is not None  # only DINO has none, which overrides this
        return start.position

    def normalize_state(self, content: Tensor) -> Tensor:
        """What the heads see of the queries."""
        return content

    def move_boxes(self, head: nn.Module, state: Tensor, reference: Tensor) -> Tensor:
        """Boxes ``[B, N, 4]`` in [0, 1]: references, corrected by a head."""
        with torch.autocast(state.device.type, enabled=False):
            logits = inverse_sigmoid(reference.float(), self.eps)
            if logits.shape[-1] == 2:
                logits = F.pad(logits, (0, 2))
            return (head(state.float()) + logits).sigmoid()


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logits of values in [0, 1], with distances from 0 and 1 of at least ``eps``."""
    return (x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0)).log()
