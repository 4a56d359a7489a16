"""Deformable DETR's transformer (Zhu et al., ICLR 2021, arXiv 2010.04159): plain, refining boxes, in two stages.

Parameter names are those of the official code, so its checkpoints load as they are. ``B`` images, ``S`` tokens of
all levels, ``N`` queries, ``V`` levels, ``C`` channels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from updetr_d2.modeling.matcher import Matches
from updetr_d2.modeling.one_to_many import match_centers
from updetr_d2.modeling.outputs import AuxiliaryOutputs, Outputs
from updetr_d2.modeling.position_encoding import SinePositionEncoding, sine_features
from updetr_d2.modeling.targets import BatchTargets
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
from updetr_d2.modeling.transformers.deformable_decoder import DeformableDecoder, inverse_sigmoid
from updetr_d2.modeling.transformers.deformable_encoder import DeformableEncoder
from updetr_d2.modeling.transformers.deformable_heads import box_head, class_head, layer_head
from updetr_d2.modeling.transformers.deformable_layers import DeformableDecoderLayer, DeformableEncoderLayer
from updetr_d2.modeling.transformers.denoising import denoising_mask
from updetr_d2.modeling.transformers.level_projections import NORM_GROUPS, LevelProjections
from updetr_d2.modeling.transformers.proposals import (
    LARGEST_PROPOSAL,
    DecoderInput,
    best_tokens,
    gather_tokens,
    token_proposals,
    with_patches,
    without_duplicates,
)
from updetr_d2.modeling.transformers.tokens import Tokens, flatten_levels

__all__ = ["DeformableTransformer"]


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
        proposal_nms_threshold: in two stages, of proposals with a larger IoU only the best becomes a query;
            1 takes all.
        center_radius: in two stages, tokens in the middle of an object learn to propose it, see
            :func:`match_centers`; 0 matches proposals as queries are.
        proposal_size: in two stages, side of the boxes that tokens of the finest level start from, as a share of
            the image's, in (0, 1); twice as much in each further level.
        class_prior: score of each class that a fresh class head gives, in (0, 1).
        exact_valid_ratios: see :func:`flatten_levels`.
        recompute_encoder, recompute_decoder: see :class:`Transformer`.

    Raises:
        ValueError: if ``two_stage`` lacks ``box_refine``, there are fewer levels than features, C is not a
            multiple of 32, or ``proposal_size`` or ``class_prior`` is out of its range.
    """

    # Of the encoding of image positions.
    position_temperature = 10000.0
    position_offset = -0.5
    decoder_class: type[DeformableDecoder] = DeformableDecoder

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
        proposal_nms_threshold: float = 1.0,
        center_radius: float = 0.0,
        proposal_size: float = 0.05,
        class_prior: float = 0.01,
        exact_valid_ratios: bool = False,
        recompute_encoder: bool = False,
        recompute_decoder: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads or hidden_dim % NORM_GROUPS:
            raise ValueError(
                f"`hidden_dim` ({hidden_dim}) must be a multiple of `num_heads` ({num_heads}) "
                f"and, for a deformable transformer, of {NORM_GROUPS}."
            )
        if num_levels < len(in_features):
            raise ValueError(
                f"`num_levels` ({num_levels}) is less than the number of "
                f"`in_features` {tuple(in_features)}: raise it or take features out."
            )
        if two_stage and not box_refine:
            raise ValueError("`two_stage` needs `box_refine`: set it to True.")
        if not 0 < class_prior < 1:
            raise ValueError(f"`class_prior` is {class_prior}: it must be between 0 and 1.")
        if two_stage and not 0 < proposal_size * 2 ** (num_levels - 1) < LARGEST_PROPOSAL:
            raise ValueError(
                f"`proposal_size` is {proposal_size}: it must be above 0 and, doubled from level to level "
                f"(`num_levels` is {num_levels}), stay below {LARGEST_PROPOSAL}."
            )
        self.in_features = tuple(in_features)
        self.hidden_dim = hidden_dim
        self.num_decoder_layers = num_decoder_layers
        self.num_levels = num_levels
        self.box_refine = box_refine
        self.two_stage = two_stage
        self.mixed_selection = mixed_selection
        self.look_forward_twice = look_forward_twice
        self.proposal_nms_threshold = proposal_nms_threshold
        self.center_radius = center_radius
        self.proposal_size = proposal_size
        self.class_prior = class_prior
        self.exact_valid_ratios = exact_valid_ratios
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
        self.encoder = DeformableEncoder(
            (DeformableEncoderLayer(**layer_args) for _ in range(num_encoder_layers)),
            recompute=recompute_encoder,
        )
        self.decoder = self.decoder_class(
            (DeformableDecoderLayer(**layer_args) for _ in range(num_decoder_layers)),
            box_refine=box_refine,
            look_forward_twice=look_forward_twice,
            recompute=recompute_decoder,
        )
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
            "proposal_nms_threshold": deformable.PROPOSAL_NMS_THRESH,
            "center_radius": deformable.CENTER_RADIUS,
            "proposal_size": deformable.PROPOSAL_SIZE,
            "class_prior": deformable.CLASS_PRIOR,
            "exact_valid_ratios": deformable.EXACT_VALID_RATIOS,
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
        return LevelProjections(channels, self.hidden_dim, num_levels=self.num_levels)

    def build_query_embed(self, num_queries: int) -> nn.Embedding | None:
        if not self.two_stage:
            return nn.Embedding(num_queries, 2 * self.hidden_dim)  # position, content
        return nn.Embedding(num_queries, self.hidden_dim) if self.mixed_selection else None

    def build_heads(self, num_logits: int) -> tuple[nn.Module, nn.Module]:
        if not self.box_refine:
            shared = class_head(self.hidden_dim, num_logits, prior=self.class_prior)
            return shared, box_head(self.hidden_dim, log_size=-2.0)
        # The last of them are the encoder's.
        count = self.num_decoder_layers + self.two_stage
        classes = nn.ModuleList(
            class_head(self.hidden_dim, num_logits, prior=self.class_prior) for _ in range(count)
        )
        first_log_size = 0.0 if self.two_stage else -2.0
        boxes = nn.ModuleList(
            box_head(self.hidden_dim, log_size=0.0 if i else first_log_size) for i in range(count)
        )
        return classes, boxes

    def project(self, input_proj: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
        return input_proj(features)

    def decode(
        self, pyramid: Pyramid, queries: Queries, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        tokens = self.encoder(
            flatten_levels(pyramid, self.position_encoding, self.level_embed, exact=self.exact_valid_ratios)
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
        states, boxes = self.decoder(tokens, start, attn_mask, bbox_embed)
        logits = torch.stack([in_float32(layer_head(class_embed, i), s) for i, s in enumerate(states)])
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
        logits = in_float32(layer_head(class_embed, -1), memory)
        box_logits = in_float32(layer_head(bbox_embed, -1), memory) + anchors
        best = self.choose_tokens(logits[..., 0], box_logits, queries)
        chosen = gather_tokens(box_logits, best).detach()
        position, proposed = self.embed_proposals(chosen)
        if proposed is None:
            content = queries.learned_embed()[: best.shape[1]].expand(batch_size, -1, -1)
        else:
            content = proposed
        # Every target counts as class 0 here: proposals tell objects from background only.
        proposals = AuxiliaryOutputs(
            Outputs(logits[None], box_logits.sigmoid()[None]),
            class_agnostic=True,
            assign=self.assign_tokens(tokens),
        )
        return DecoderInput(with_patches(content, queries), position, chosen.sigmoid(), proposals)

    def encoder_memory(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Memory ``[B, S, C]`` for the encoder's heads, and the logits ``[B, S, 4]`` of each token's own box."""
        anchors, usable = token_proposals(tokens, size=self.proposal_size)
        memory = tokens.values.masked_fill(~usable[..., None], 0.0)
        return self.enc_output_norm(self.enc_output(memory)), anchors

    def choose_tokens(self, scores: Tensor, box_logits: Tensor, queries: Queries) -> Tensor:
        """Indices ``[B, N]`` of the tokens whose proposals become queries."""
        if self.proposal_nms_threshold < 1:
            scores = without_duplicates(scores, box_logits.sigmoid(), threshold=self.proposal_nms_threshold)
        return best_tokens(scores, queries)

    def assign_tokens(self, tokens: Tokens) -> Callable[[BatchTargets], Matches] | None:
        """How proposals of all tokens find the objects that they learn, None for the criterion's matcher."""
        if self.center_radius == 0:
            return None
        return functools.partial(match_centers, tokens.centers(), radius=self.center_radius)

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
            noised_position, _ = self.embed_proposals(inverse_sigmoid(noised.boxes, self.decoder.eps))
            position = torch.cat([noised_position, position], dim=1)
        return DecoderInput(
            content=torch.cat([noised.content, start.content], dim=1),
            position=position,
            reference=torch.cat([noised.boxes, start.reference], dim=1),
            proposals=start.proposals,
        )
