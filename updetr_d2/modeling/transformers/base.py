"""What every transformer of a detector offers to ``DETR``, and what the two say to each other.

``B`` images, ``N`` queries, ``C`` channels, ``L`` decoder layers, ``K`` outputs of the class head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from updetr_d2.modeling.outputs import AuxiliaryOutputs

TRANSFORMER_REGISTRY = Registry("TRANSFORMER")
TRANSFORMER_REGISTRY.__doc__ = """
Transformers of detectors: subclasses of DetectionTransformer, built from a config.
"""


def build_transformer(cfg: CfgNode) -> "DetectionTransformer":
    """Build the transformer named by ``cfg.MODEL.TRANSFORMER.NAME``."""
    return TRANSFORMER_REGISTRY.get(cfg.MODEL.TRANSFORMER.NAME)(cfg)


@dataclass
class NoisedQueries:
    """Noised objects that the decoder gets beside the queries in training (denoising).

    Attributes:
        content: ``[B, R, C]``, embedded labels.
        boxes: ``[B, R, 4]`` cxcywh in [0, 1].
        group_size: queries of one copy of all objects, positive and negative.
    """

    content: Tensor
    boxes: Tensor
    group_size: int


@dataclass
class Queries:
    """Object queries before the first decoder layer.

    Attributes:
        embed: learned embeddings ``[N, E]``, or None where the encoder alone makes the queries.
        patches: ``[B, N, C]`` added to what the queries look for, or None.
        num_groups: queries of different groups look for different patches.
        attn_mask: bool ``[N, N]``, True where one query must not attend to another, or None.
        patch_features: CNN features ``[B, M, D]`` of the patches, or None.
        standardized_patches: the same, of mean 0 and variance 1 in each channel, or None.
        noised: for denoising, or None.
    """

    embed: Tensor | None
    num_queries: int
    patches: Tensor | None = None
    num_groups: int = 1
    attn_mask: Tensor | None = None
    patch_features: Tensor | None = None
    standardized_patches: Tensor | None = None
    noised: NoisedQueries | None = None

    def position(self, batch_size: int) -> Tensor:
        """Embeddings and patches together, ``[B, N, C]``: how they enter DETR's decoder."""
        embed = self.learned_embed()
        if self.patches is None:
            return embed.expand(batch_size, -1, -1)
        return self.patches + embed

    def learned_embed(self) -> Tensor:
        """``embed``, for transformers that need it.

        Raises:
            ValueError: if there is none.
        """
        if self.embed is None:
            raise ValueError("This transformer learns its queries: build_query_embed must not return None.")
        return self.embed


@dataclass
class Decoded:
    """What a transformer gives.

    Attributes:
        states: of the queries ``[L, B, N, C]``.
        logits: float32 ``[L, B, N, K]``.
        boxes: float32 ``[L, B, N, 4]`` cxcywh in [0, 1].
        memory: encoder output ``[B, C, h, w]`` of the coarsest backbone feature.
        proposals: of the encoder, or None.
        noised: logits and boxes of the noised queries, or None.
    """

    states: Tensor
    logits: Tensor
    boxes: Tensor
    memory: Tensor
    proposals: AuxiliaryOutputs | None = None
    noised: tuple[Tensor, Tensor] | None = None


@dataclass
class Pyramid:
    """An image batch on its way.

    Attributes:
        features: of the backbone by name, ``[B, D, h, w]``.
        levels: projected features ``[B, C, h, w]`` that the transformer sees; the coarsest one of the backbone's
            is ``levels[coarsest]``, further ones follow.
        paddings: of each level bool ``[B, h, w]``, True on padding, or None without padding.
        coarsest: see ``levels``.
        image_size: (height, width) of the padded images.
        image_padding: bool ``[B, H, W]``, True on padding, or None without padding.
    """

    features: dict[str, Tensor]
    levels: list[Tensor]
    paddings: list[Tensor | None]
    coarsest: int
    image_size: tuple[int, int]
    image_padding: Tensor | None

    def valid_part(self) -> Tensor:
        """Share (width, height) of the padded images that each fills, float32 ``[B, 2]`` (or 1 for B)."""
        if self.image_padding is None:
            return torch.ones(1, 2, device=self.levels[0].device)
        return valid_part(self.image_padding)


def valid_part(padding: Tensor) -> Tensor:
    """Share (width, height) of ``[B, H, W]`` that is no padding, float32 ``[B, 2]``."""
    present = ~padding
    return torch.stack([present[:, 0].float().mean(dim=1), present[:, :, 0].float().mean(dim=1)], dim=-1)


class DetectionTransformer(nn.Module):
    """Base of all: encoder, decoder and what of a detector depends on their kind.

    Attributes:
        hidden_dim: channels C.
        in_features: backbone features that it sees; () for ``MODEL.DETR.IN_FEATURE`` alone.
    """

    hidden_dim: int
    in_features: tuple[str, ...] = ()

    def build_input_proj(self, channels: Sequence[int]) -> nn.Module:
        """The layers from the backbone's channels to C."""
        raise NotImplementedError

    def build_query_embed(self, num_queries: int) -> nn.Embedding | None:
        """Learned queries, None if there are none."""
        raise NotImplementedError

    def build_heads(self, num_logits: int) -> tuple[nn.Module, nn.Module]:
        """Class head and box head."""
        raise NotImplementedError

    def project(self, input_proj: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone features ``[B, D, h, w]`` -> levels ``[B, C, h, w]``, the coarsest backbone feature at
        ``len(features) - 1``."""
        raise NotImplementedError

    def decode(
        self, pyramid: Pyramid, queries: Queries, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        """
        Args:
            pyramid: the images.
            queries: the object queries.
            class_embed, bbox_embed: of :meth:`build_heads`.
        """
        raise NotImplementedError


def in_float32(head: nn.Module, states: Tensor) -> Tensor:
    """A head without autocast."""
    with torch.autocast(states.device.type, enabled=False):
        return head(states.float())
