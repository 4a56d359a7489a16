"""Deformable DETR's transformer (Zhu et al., ICLR 2021, arXiv 2010.04159): plain, refining boxes, in two stages.

Parameter names are those of the official code, so its checkpoints load as they are. ``B`` images, ``S`` tokens of
all levels, ``N`` queries, ``V`` levels, ``C`` channels.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.outputs import AuxiliaryOutputs, Outputs
from updetr_d2.modeling.position_encoding import SinePositionEncoding, sine_features
from updetr_d2.modeling.transformers.base import (
    TRANSFORMER_REGISTRY,
    Decoded,
    DetectionTransformer,
    NoisedQueries,
    Pyramid,
    Queries,
    in_float32,
)
from updetr_d2.modeling.transformers.deformable_attention import MultiScaleDeformableAttention
from updetr_d2.modeling.transformers.deformable_layers import (
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    LayerStack,
    Tokens,
    flatten_levels,
    inverse_sigmoid,
    token_proposals,
)
from updetr_d2.modeling.transformers.denoising import denoising_mask

__all__ = ["DeformableTransformer"]

# Groups of the norm behind each projection, as in the official code.
_NORM_GROUPS = 32
# Share of foreground that a fresh class head predicts (Lin et al., arXiv 1708.02002).
_PRIOR = 0.01


@dataclass
class DecoderInput:
    """Queries as the decoder gets them.

    Attributes:
        content: ``[B, N, C]``.
        position: ``[B, N, C]``, or None where each layer computes it from the boxes.
        reference: points ``[B, N, 2]`` or boxes ``[B, N, 4]`` in [0, 1], without gradient in two stages.
        proposals: of the encoder, to be trained; None in one stage.
    """

    content: Tensor
    position: Tensor | None
    reference: Tensor
    proposals: AuxiliaryOutputs | None = None


@TRANSFORMER_REGISTRY.register()
class DeformableTransformer(DetectionTransformer):
    """Encoder and decoder with multi-scale deformable attention.

    Args:
        in_features: backbone features that it sees, the finest first.
        hidden_dim: channels C, a multiple of 32.
        num_heads: attention heads; divides C.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability, in [0, 1).
        num_levels: V, at least the number of ``in_features``; further levels come from the last of them.
        num_points: points of a head in each level.
        box_refine: each decoder layer has heads of its own and corrects the boxes of the layer before.
        two_stage: the encoder's tokens propose the first boxes; needs ``box_refine``.
        mixed_selection: in two stages, only positions come from the proposals, contents are learned.
        look_forward_twice: boxes of a layer are trained through those of the layer before.
        recompute_encoder, recompute_decoder: see :class:`Transformer`.

    Raises:
        ValueError: if ``two_stage`` lacks ``box_refine``, there are fewer levels than features, or C is not a
            multiple of 32.
    """

    # Of the encoding of image positions.
    position_temperature = 10000.0
    position_offset = -0.5
    # Smallest distance of a box's coordinates from 0 and 1 that their logits tell.
    eps = 1e-5

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str] = ("res3", "res4", "res5"),
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        num_levels: int = 4,
        num_points: int = 4,
        box_refine: bool = False,
        two_stage: bool = False,
        mixed_selection: bool = False,
        look_forward_twice: bool = False,
        recompute_encoder: bool = False,
        recompute_decoder: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads or hidden_dim % _NORM_GROUPS:
            raise ValueError(
                f"`hidden_dim` ({hidden_dim}) must be a multiple of `num_heads` ({num_heads}) "
                f"and, for a deformable transformer, of {_NORM_GROUPS}."
            )
        if num_levels < len(in_features):
            raise ValueError(
                f"`num_levels` ({num_levels}) is less than the number of "
                f"`in_features` {tuple(in_features)}: raise it or take features out."
            )
        if two_stage and not box_refine:
            raise ValueError("`two_stage` needs `box_refine`: set it to True.")
        self.in_features = tuple(in_features)
        self.hidden_dim = hidden_dim
        self.num_decoder_layers = num_decoder_layers
        self.num_levels = num_levels
        self.box_refine = box_refine
        self.two_stage = two_stage
        self.mixed_selection = mixed_selection
        self.look_forward_twice = look_forward_twice
        self.recompute_encoder = recompute_encoder
        self.recompute_decoder = recompute_decoder
        self.position_encoding = SinePositionEncoding(
            hidden_dim, temperature=self.position_temperature, offset=self.position_offset
        )
        layer_args: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "num_levels": num_levels,
            "num_points": num_points,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
        }
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim))
        self.encoder = LayerStack(DeformableEncoderLayer(**layer_args) for _ in range(num_encoder_layers))
        self.decoder = LayerStack(DeformableDecoderLayer(**layer_args) for _ in range(num_decoder_layers))
        self.build_query_layers()
        self.reset_parameters()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        detr, deformable = cfg.MODEL.DETR, cfg.MODEL.DEFORMABLE
        return {
            "in_features": deformable.IN_FEATURES,
            "hidden_dim": detr.HIDDEN_DIM,
            "num_heads": detr.NHEADS,
            "num_encoder_layers": detr.ENC_LAYERS,
            "num_decoder_layers": detr.DEC_LAYERS,
            "dim_feedforward": detr.DIM_FEEDFORWARD,
            "dropout": detr.DROPOUT,
            "num_levels": deformable.NUM_LEVELS,
            "num_points": deformable.NUM_POINTS,
            "box_refine": deformable.BOX_REFINE,
            "two_stage": deformable.TWO_STAGE,
            "mixed_selection": deformable.MIXED_SELECTION,
            "look_forward_twice": deformable.LOOK_FORWARD_TWICE,
            "recompute_encoder": detr.RECOMPUTE_ENCODER,
            "recompute_decoder": detr.RECOMPUTE_DECODER,
        }

    def build_query_layers(self) -> None:
        """The layers between encoder and decoder."""
        dim = self.hidden_dim
        if self.two_stage:
            out_dim = dim if self.mixed_selection else 2 * dim
            self.enc_output = nn.Linear(dim, dim)
            self.enc_output_norm = nn.LayerNorm(dim)
            self.pos_trans = nn.Linear(2 * dim, out_dim)
            self.pos_trans_norm = nn.LayerNorm(out_dim)
        else:
            self.reference_points = nn.Linear(dim, 2)

    def reset_parameters(self) -> None:
        """The official initialization."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        if hasattr(self, "reference_points"):
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def build_input_proj(self, channels: Sequence[int]) -> nn.ModuleList:
        projections = [nn.Conv2d(each, self.hidden_dim, kernel_size=1) for each in channels]
        in_channels = channels[-1]
        for _ in range(self.num_levels - len(channels)):
            projections.append(nn.Conv2d(in_channels, self.hidden_dim, kernel_size=3, stride=2, padding=1))
            in_channels = self.hidden_dim
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        # A level of a small image may be one token, and a group needs two values.
        groups = min(_NORM_GROUPS, self.hidden_dim // 2)
        return nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(groups, self.hidden_dim)) for conv in projections
        )

    def build_query_embed(self, num_queries: int) -> nn.Embedding | None:
        if not self.two_stage:
            return nn.Embedding(num_queries, 2 * self.hidden_dim)  # position, content
        return nn.Embedding(num_queries, self.hidden_dim) if self.mixed_selection else None

    def build_heads(self, num_logits: int) -> tuple[nn.Module, nn.Module]:
        if not self.box_refine:
            return self.new_class_head(num_logits), self.new_box_head(log_size=-2.0)
        # The last of them are the encoder's.
        count = self.num_decoder_layers + self.two_stage
        classes = nn.ModuleList(self.new_class_head(num_logits) for _ in range(count))
        boxes = nn.ModuleList(
            self.new_box_head(log_size=-2.0 if i == 0 and not self.two_stage else 0.0) for i in range(count)
        )
        return classes, boxes

    def new_class_head(self, num_logits: int) -> nn.Linear:
        """A class head that predicts little foreground."""
        head = nn.Linear(self.hidden_dim, num_logits)
        nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
        return head

    def new_box_head(self, *, log_size: float = 0.0) -> MLP:
        """A box head that changes nothing, but for the logits of width and height."""
        head = MLP(self.hidden_dim, self.hidden_dim, 4, num_layers=3)
        last = head.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[2:], log_size)
        return head

    def project(self, input_proj: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
        projections = list(input_proj.children())
        levels = [proj(feature) for proj, feature in zip(projections, features)]
        last = features[-1]
        for proj in projections[len(features) :]:
            last = proj(last)
            levels.append(last)
        return levels

    def decode(
        self, pyramid: Pyramid, queries: Queries, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        tokens = self.encode(
            flatten_levels(pyramid.levels, pyramid.paddings, self.position_encoding, self.level_embed)
        )
        start = self.start_decoder(tokens, queries, class_embed, bbox_embed)
        attn_mask, num_noised = queries.attn_mask, 0
        if queries.noised is not None:
            num_noised = queries.noised.boxes.shape[1]
            attn_mask = denoising_mask(
                num_noised,
                queries.noised.group_size,
                start.content.shape[1],
                tokens.values.device,
                matching_mask=attn_mask,
            )
            start = self.put_before(queries.noised, start)
        states, boxes = self.run_decoder(tokens, start, attn_mask, bbox_embed)
        logits = torch.stack([in_float32(_layer_head(class_embed, i), s) for i, s in enumerate(states)])
        noised = None
        if num_noised:
            noised = logits[:, :, :num_noised], boxes[:, :, :num_noised]
        return Decoded(
            states=states[:, :, num_noised:],
            logits=logits[:, :, num_noised:],
            boxes=boxes[:, :, num_noised:],
            memory=tokens.level_map(pyramid.coarsest),
            proposals=start.proposals,
            noised=noised,
        )

    def encode(self, tokens: Tokens) -> Tokens:
        """The tokens after the encoder."""
        reference = tokens.reference_points()
        values = tokens.values
        for layer in self.encoder.layers:
            if self.recompute_encoder and torch.is_grad_enabled():
                values = checkpoint(layer, values, tokens, reference, use_reentrant=False)
            else:
                values = layer(values, tokens, reference)
        return tokens.with_values(values)

    def start_decoder(
        self, tokens: Tokens, queries: Queries, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> DecoderInput:
        """What the decoder starts from: learned queries, or the encoder's best proposals."""
        batch_size = len(tokens.values)
        if not self.two_stage:
            position, content = queries.learned_embed().expand(batch_size, -1, -1).chunk(2, dim=-1)
            reference = in_float32(self.reference_points, position).sigmoid()
            return DecoderInput(with_patches(content, queries), position, reference)
        memory, anchors = self.encoder_memory(tokens)
        logits = in_float32(_layer_head(class_embed, -1), memory)
        box_logits = in_float32(_layer_head(bbox_embed, -1), memory) + anchors
        best = best_tokens(logits[..., 0], queries)
        chosen = gather_tokens(box_logits, best).detach()
        position, proposed = self.embed_proposals(chosen)
        if proposed is None:
            content = queries.learned_embed()[: best.shape[1]].expand(batch_size, -1, -1)
        else:
            content = proposed
        # Every target counts as class 0 here: proposals tell objects from background only.
        proposals = AuxiliaryOutputs(Outputs(logits[None], box_logits.sigmoid()[None]), class_agnostic=True)
        return DecoderInput(with_patches(content, queries), position, chosen.sigmoid(), proposals)

    def encoder_memory(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Memory ``[B, S, C]`` for the encoder's heads, and the logits ``[B, S, 4]`` of each token's own box."""
        anchors, usable = token_proposals(tokens)
        memory = tokens.values.masked_fill(~usable[..., None], 0.0)
        return self.enc_output_norm(self.enc_output(memory)), anchors

    def embed_proposals(self, box_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Position and content ``[B, N, C]`` of queries at boxes; no content with ``mixed_selection``."""
        with torch.autocast(box_logits.device.type, enabled=False):
            coordinates = box_logits.sigmoid() * (2 * math.pi)
            features = sine_features(coordinates, self.hidden_dim // 2).flatten(2)
            embedded = self.pos_trans_norm(self.pos_trans(features))
        if self.mixed_selection:
            return embedded, None
        return embedded.chunk(2, dim=-1)

    def put_before(self, noised: NoisedQueries, start: DecoderInput) -> DecoderInput:
        """Noised queries in front of the others."""
        position = start.position
        if position is not None:
            noised_position, _ = self.embed_proposals(inverse_sigmoid(noised.boxes, self.eps))
            position = torch.cat([noised_position, position], dim=1)
        return DecoderInput(
            content=torch.cat([noised.content, start.content], dim=1),
            position=position,
            reference=torch.cat([noised.boxes, start.reference], dim=1),
            proposals=start.proposals,
        )

    def run_decoder(
        self, tokens: Tokens, start: DecoderInput, attn_mask: Tensor | None, bbox_embed: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """States ``[L, B, N, C]`` and boxes ``[L, B, N, 4]`` of all layers."""
        content, reference = start.content, start.reference
        before = reference  # what the boxes of a layer are trained through
        states, boxes = [], []
        for i, layer in enumerate(self.decoder.layers):
            position = self.query_position(start, tokens, reference)
            run = functools.partial(
                layer,
                position=position,
                reference=tokens.in_levels(reference),
                tokens=tokens,
                allowed=None if attn_mask is None else ~attn_mask,
            )
            if self.recompute_decoder and torch.is_grad_enabled():
                content = checkpoint(run, content, use_reentrant=False)
            else:
                content = run(content)
            state = self.normalize_state(content)
            head = _layer_head(bbox_embed, i)
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


def best_tokens(scores: Tensor, queries: Queries) -> Tensor:
    """Indices ``[B, N]`` of the tokens with the highest scores ``[B, S]``; groups of queries get the same ones.

    With fewer tokens than queries there are as many queries as tokens; of a group, the best come again.
    """
    size = queries.num_queries // queries.num_groups
    best = scores.topk(min(size, scores.shape[1]), dim=1).indices
    if queries.num_groups == 1:
        return best
    within = torch.arange(size, device=best.device) % best.shape[1]
    return best[:, within].repeat(1, queries.num_groups)


def with_patches(content: Tensor, queries: Queries) -> Tensor:
    """Contents ``[B, N, C]`` of the queries with the patches that they look for."""
    if queries.patches is None:
        return content
    return content + queries.patches[:, : content.shape[1]]


def _layer_head(heads: nn.Module, layer: int) -> nn.Module:
    """The head of a layer, of a list or one for all."""
    return heads[layer] if isinstance(heads, nn.ModuleList) else heads


def gather_tokens(values: Tensor, indices: Tensor) -> Tensor:
    """``[B, S, D]``, ``[B, N]`` -> ``[B, N, D]``."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
