"""DINO's transformer (Zhang et al., ICLR 2023, arXiv 2203.03605) on Deformable DETR's in two stages.

What differs: class-aware proposals with heads of their own, learned contents, positions computed from the boxes in
each layer, one class and one box head for all layers, boxes trained through two layers.
"""

import math

import torch
from torch import Tensor, nn

from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.outputs import AuxiliaryOutputs, Outputs
from updetr_d2.modeling.position_encoding import sine_features
from updetr_d2.modeling.transformers.base import TRANSFORMER_REGISTRY, Queries, in_float32
from updetr_d2.modeling.transformers.deformable import DeformableTransformer
from updetr_d2.modeling.transformers.deformable_decoder import DeformableDecoder
from updetr_d2.modeling.transformers.deformable_heads import box_head, class_head
from updetr_d2.modeling.transformers.proposals import DecoderInput, gather_tokens, with_patches
from updetr_d2.modeling.transformers.tokens import Tokens

__all__ = ["DINOTransformer"]


class DINODecoder(DeformableDecoder):
    """A decoder that computes positions from the boxes in each layer, and whose heads see normalized queries."""

    eps = 1e-3
    norm: nn.LayerNorm
    ref_point_head: MLP

    def query_position(self, start: DecoderInput, tokens: Tokens, reference: Tensor) -> Tensor:
        with torch.autocast(reference.device.type, enabled=False):
            coordinates = tokens.in_levels(reference)[:, :, 0] * (2 * math.pi)
            x, y, width, height = coordinates.unbind(dim=-1)
            ordered = torch.stack([y, x, width, height], dim=-1)
            features = sine_features(ordered, start.content.shape[-1] // 2).flatten(2)
        return self.ref_point_head(features)

    def normalize_state(self, content: Tensor) -> Tensor:
        return self.norm(content)


@TRANSFORMER_REGISTRY.register()
class DINOTransformer(DeformableTransformer):
    """DINO's encoder and decoder.

    Args: as for :class:`DeformableTransformer`, with ``box_refine``, ``two_stage``, ``mixed_selection`` and
        ``look_forward_twice``, which are DINO's.

    Raises:
        ValueError: if one of these is off.
    """

    position_temperature = 20.0
    position_offset = 0.0
    decoder_class = DINODecoder
    decoder: DINODecoder

    def build_query_layers(self) -> None:
        parts = {
            "box_refine": self.box_refine,
            "two_stage": self.two_stage,
            "mixed_selection": self.mixed_selection,
            "look_forward_twice": self.look_forward_twice,
        }
        if not all(parts.values()):
            missing = ", ".join(f"`{name}`" for name, there in parts.items() if not there)
            raise ValueError(f"DINOTransformer needs {missing}: set them to True.")
        dim = self.hidden_dim
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.decoder.norm = nn.LayerNorm(dim)
        self.decoder.ref_point_head = MLP(2 * dim, dim, dim, num_layers=2)

    def build_heads(self, num_logits: int) -> tuple[nn.Module, nn.Module]:
        self.enc_out_class_embed = class_head(self.hidden_dim, num_logits, prior=self.class_prior)
        self.enc_out_bbox_embed = box_head(self.hidden_dim)
        classes = class_head(self.hidden_dim, num_logits, prior=self.class_prior)
        return classes, box_head(self.hidden_dim)

    def start_decoder(
        self, tokens: Tokens, queries: Queries, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> DecoderInput:
        memory, anchors = self.encoder_memory(tokens)
        logits = in_float32(self.enc_out_class_embed, memory)
        box_logits = in_float32(self.enc_out_bbox_embed, memory) + anchors
        best = self.choose_tokens(logits.amax(dim=-1), box_logits, queries)
        chosen = gather_tokens(box_logits, best)
        content = queries.learned_embed()[: best.shape[1]].expand(len(memory), -1, -1)
        assign = self.assign_tokens(tokens)
        if assign is None:  # only the proposals that become queries are trained
            proposals = AuxiliaryOutputs(Outputs(gather_tokens(logits, best)[None], chosen.sigmoid()[None]))
        else:
            proposals = AuxiliaryOutputs(Outputs(logits[None], box_logits.sigmoid()[None]), assign=assign)
        return DecoderInput(with_patches(content, queries), None, chosen.detach().sigmoid(), proposals)
