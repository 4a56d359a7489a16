"""DETR and UP-DETR written the straightforward way, with the weights of our model and the same numbers.

Every norm is a multiplication and an addition of its own, attention is PyTorch's ``nn.MultiheadAttention`` with
its weights, sequence first and always masked, the losses are computed layer by layer.
"""

import copy
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.reference_losses import layer_losses
from benchmarks.speed.reference_matching import match_layer, targets_of_images
from updetr_d2.modeling.backbone import build_backbone
from updetr_d2.modeling.criterion import SetCriterion
from updetr_d2.modeling.loss_terms import SoftmaxClassLoss
from updetr_d2.modeling.matcher import HungarianMatcher
from updetr_d2.modeling.meta_arch import DETR, UPDETR
from updetr_d2.modeling.meta_arch.detr import size_padding
from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers import Transformer
from updetr_d2.modeling.transformers.transformer import TransformerEncoderLayer


class PlainFrozenNorm(nn.Module):
    """A frozen BatchNorm as a multiplication and an addition."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: FrozenBatchNorm2d) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            y.reshape(1, -1, 1, 1) for y in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


def plain_backbone(cfg: CfgNode, backbone: nn.Module) -> nn.Module:
    """The backbone as Detectron2 builds it, with the weights of ours, frozen where ours is."""
    plain = build_backbone(cfg).to(cfg.MODEL.DEVICE)
    plain.load_state_dict(backbone.state_dict())
    for parameter, ours in zip(plain.parameters(), backbone.parameters()):
        parameter.requires_grad_(ours.requires_grad)
    for module in plain.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, FrozenBatchNorm2d):
            module.norm = PlainFrozenNorm(module.norm)
    return plain


class PlainLayer(nn.Module):
    """A layer of the encoder, or of the decoder with ``cross_attention``."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, pre_norm: bool, cross: bool
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout=dropout) if cross else None
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        for i in range(1, 4 if cross else 3):
            self.add_module(f"norm{i}", nn.LayerNorm(width))
            self.add_module(f"dropout{i}", nn.Dropout(dropout))

    def block(self, i: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        norm, dropout = getattr(self, f"norm{i}"), getattr(self, f"dropout{i}")
        if self.pre_norm:
            return x + dropout(function(norm(x)))
        return norm(x + dropout(function(x)))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None,
        padding: Tensor,
        memory: Tensor | None = None,
        memory_position: Tensor | None = None,
    ) -> Tensor:
        own_padding = padding if self.multihead_attn is None else None
        x = self.block(
            1,
            x,
            lambda y: self.self_attn(
                y + position, y + position, value=y, attn_mask=mask, key_padding_mask=own_padding
            )[0],
        )
        cross_attention = self.multihead_attn
        if cross_attention is not None:
            assert memory is not None and memory_position is not None
            x = self.block(
                2,
                x,
                lambda y: cross_attention(
                    y + position, memory + memory_position, value=memory, key_padding_mask=padding
                )[0],
            )
        last = 2 if self.multihead_attn is None else 3
        return self.block(last, x, lambda y: self.linear2(self.dropout(F.relu(self.linear1(y)))))


class PlainStack(nn.Module):
    def __init__(self, layers: list[PlainLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class PlainTransformer(nn.Module):
    """Sequence first, an additive mask between the groups, the norm of the decoder on each layer's output."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        first = transformer.encoder.layers[0]
        assert isinstance(first, TransformerEncoderLayer)
        width, hidden = first.linear1.in_features, first.linear1.out_features
        arguments = (width, first.self_attn.num_heads, hidden, first.dropout.p, first.pre_norm)
        encoder = [PlainLayer(*arguments, False) for _ in transformer.encoder.layers]
        decoder = [PlainLayer(*arguments, True) for _ in transformer.decoder.layers]
        self.encoder = PlainStack(encoder, nn.LayerNorm(width) if first.pre_norm else nn.Identity())
        self.decoder = PlainStack(decoder, nn.LayerNorm(width))
        self.load_state_dict(transformer.state_dict())

    def forward(
        self, features: Tensor, padding: Tensor, position: Tensor, queries: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Decoder states ``[L, B, N, C]``; the arguments are batch first."""
        x = features.flatten(2).permute(2, 0, 1)
        position = position.flatten(2).permute(2, 0, 1)
        queries = queries.transpose(0, 1)
        padding = padding.flatten(1)
        for layer in self.encoder.layers:
            x = layer(x, position, None, padding)
        memory = self.encoder.norm(x)
        x = torch.zeros_like(queries)
        states = []
        for layer in self.decoder.layers:
            x = layer(x, queries, mask, padding, memory, position)
            states.append(self.decoder.norm(x))
        return torch.stack(states).transpose(1, 2)


class PlainCriterion(nn.Module):
    """Matching and losses, one decoder layer after the other; every loss with its weight.

    Raises:
        ValueError: for a criterion of another kind.
    """

    def __init__(self, criterion: nn.Module | None) -> None:
        super().__init__()
        if not isinstance(criterion, SetCriterion) or not isinstance(criterion.matcher, HungarianMatcher):
            raise ValueError(
                f"There is no reference for {type(criterion).__name__} with its matcher: leave out --compare."
            )
        self.weights = criterion.weights
        self.class_weights = next(
            term.class_weights for term in criterion.terms.values() if isinstance(term, SoftmaxClassLoss)
        )
        self.hungarian = criterion.matcher
        self.matcher = match_layer  # to be replaced where it is timed

    def forward(self, heads: dict[str, Tensor], targets: BatchTargets) -> dict[str, Tensor]:
        labels, boxes = targets_of_images(targets)
        num_layers = len(heads["pred_logits"])
        losses: dict[str, Tensor] = {}
        for layer in range(num_layers):
            outputs = {name: heads[name][layer] for name in heads if name.startswith("pred_")}
            predicted = outputs["pred_logits"], outputs["pred_boxes"]
            pairs = self.matcher(self.hungarian, *predicted, labels, boxes, targets.group_size)
            values = layer_losses(outputs, pairs, labels, boxes, targets.features, self.class_weights)
            suffix = "" if layer == num_layers - 1 else f"_{layer}"
            losses |= {f"{name}{suffix}": self.weights[name] * value for name, value in values.items()}
        return losses


class PlainDETR(nn.Module):
    """A DETR or UPDETR for comparison, with copies of its weights.

    Args:
        model: ours.
        cfg: that it was built with.

    Raises:
        ValueError: for a model of another kind.
    """

    input_proj: nn.Module
    query_embed: nn.Embedding
    class_embed: nn.Module
    bbox_embed: nn.Module

    def __init__(self, model: DETR, cfg: CfgNode) -> None:
        super().__init__()
        transformer = model.transformer
        if type(model) not in (DETR, UPDETR) or not isinstance(transformer, Transformer):
            raise ValueError(
                f"There is no reference for {type(model).__name__} on {type(transformer).__name__}: "
                "leave out --compare."
            )
        self.backbone = plain_backbone(cfg, model.backbone)
        self.transformer = PlainTransformer(transformer).to(model.device)
        for name in ("input_proj", "query_embed", "class_embed", "bbox_embed"):
            self.add_module(name, copy.deepcopy(getattr(model, name)))
        self.position_encoding = copy.deepcopy(transformer.position_encoding)
        self.pixel_mean, self.pixel_std = model.pixel_mean, model.pixel_std
        self.in_feature = model.in_feature
        self.with_patches = isinstance(model, UPDETR)
        if isinstance(model, UPDETR):
            self.patch2query = copy.deepcopy(model.patch2query)
            self.feature_align: MLP | None = copy.deepcopy(model.feature_align)
            self.group_size, self.mask_ratio = model.group_size, model.mask_ratio
            self.match_within_groups = model.match_within_groups
        self.criterion = PlainCriterion(model.criterion)
        self.train(model.training)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Weighted losses, as our models return them in training."""
        heads, patch_features = self.forward_heads(batched_inputs)
        targets = BatchTargets.from_instances(
            [x["instances"] for x in batched_inputs], self.pixel_mean.device
        )
        targets.features = patch_features
        if self.with_patches and self.match_within_groups:
            targets.group_size = self.group_size
        return self.criterion(heads, targets)

    def forward_heads(self, batched_inputs: list[dict]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Outputs of all heads, and the features of the patches ``[B, M, D]`` if there are any."""
        device = self.pixel_mean.device
        images = ImageList.from_tensors(
            [(x["image"].to(device).float() - self.pixel_mean) / self.pixel_std for x in batched_inputs],
            self.backbone.size_divisibility,
        )
        sizes = torch.tensor(images.image_sizes, device=device)
        padding = size_padding(sizes, *images.tensor.shape[-2:])
        features = self.backbone(images.tensor)[self.in_feature]
        padding = F.interpolate(padding[None].float(), size=features.shape[-2:])[0].bool()
        queries = self.query_embed.weight.expand(len(features), -1, -1)
        mask = patch_features = None
        if self.with_patches:
            patches = torch.stack([x["patches"].to(device).float() for x in batched_inputs])
            patches = (patches.flatten(0, 1) - self.pixel_mean) / self.pixel_std
            pooled = F.adaptive_avg_pool2d(self.backbone(patches)[self.in_feature], 1).flatten(1)
            patch_features = pooled.unflatten(0, (len(features), -1))
            queries, mask = self.add_patches(queries, patch_features)
        position = self.position_encoding(padding)
        states = self.transformer(self.input_proj(features), padding, position, queries, mask)
        heads = {"pred_logits": self.class_embed(states), "pred_boxes": self.bbox_embed(states).sigmoid()}
        if self.with_patches and self.feature_align is not None:
            heads["pred_features"] = self.feature_align(states)
        return heads, patch_features

    def add_patches(self, queries: Tensor, patch_features: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with the vectors of their patches, and the additive mask between the groups."""
        vectors = self.patch2query(patch_features).repeat_interleave(self.group_size, dim=1)
        if self.training:
            kept = torch.rand(vectors.shape[:2], device=vectors.device) > self.mask_ratio
            vectors = vectors * kept[..., None]
        num_queries = queries.shape[1]
        mask = torch.full((num_queries, num_queries), float("-inf"), device=vectors.device)
        for start in range(0, num_queries, self.group_size):
            mask[start : start + self.group_size, start : start + self.group_size] = 0
        return queries + vectors, mask
