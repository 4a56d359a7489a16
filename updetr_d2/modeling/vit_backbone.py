"""Vision transformers of the timm library as backbones, with ViTDet's simple feature pyramid (arXiv 2203.16527).

"build_timm_vit_backbone" of ``MODEL.BACKBONE.NAME``. DINOv2 and DINOv3 are meant, frozen; any plain vision
transformer of timm that takes images of any size works.
"""

import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn

from updetr_d2.modeling.backbone import check_timm_name, import_timm

__all__ = ["VisionTransformerBackbone", "build_timm_vit_backbone"]

# Name of the transformer's own feature, as in Detectron2's ViT.
LAST_FEATURE = "last_feat"


class _TokenMap(Backbone):
    """The last tokens of one of timm's vision transformers as a feature map, behind Detectron2's interface.

    Args:
        vit: stays unregistered, so that whoever holds this module decides on the names of its parameters.
        level: the pyramid is told that the stride is 2**level, as it knows powers of two alone.
    """

    def __init__(self, vit: Any, level: int) -> None:
        super().__init__()
        self._vit = (vit,)
        self._out_features = [LAST_FEATURE]
        self._out_feature_channels = {LAST_FEATURE: vit.num_features}
        self._out_feature_strides = {LAST_FEATURE: 2**level}

    @property
    def vit(self) -> Any:
        return self._vit[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.vit.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return {LAST_FEATURE: maps[0]}


class VisionTransformerBackbone(Backbone):
    """A vision transformer and, made of its last layer, features named as a ResNet's.

    "last_feat" is the transformer's own map, a token for each patch. "res2" to "res5" come from it by ViTDet's
    simple pyramid; their strides are near the powers of two: of patches of 14 px, "res3", "res4" and "res5" have
    strides 7, 14 and 28. Positions are interpolated to the size of an image. The state dict has the keys of
    timm's plain model and those of Detectron2's pyramid (``simfp_3``, ...).

    Attention reaches all of an image, so padding would change every feature. The images of a batch therefore go
    through by themselves, those of one size together, and none depends on what it was batched with.

    Args:
        name: a timm model of the kind ``VisionTransformer`` or ``Eva``.
        out_features: names of the features to return; those of the pyramid without a gap.
        pyramid_channels: channels of "res2" to "res5".
        in_channels: channels of the input image.
        frozen: train the pyramid alone, which has no pre-trained weights.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if there is no such model or feature, with what there is.
    """

    # ``forward`` wants to know the sizes of the images.
    takes_image_sizes = True

    def __init__(
        self,
        *,
        name: str,
        out_features: Sequence[str],
        pyramid_channels: int = 256,
        in_channels: int = 3,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        vit = _create_vit(name, in_channels)
        patch = vit.patch_embed.patch_size[0]
        scales = _pyramid_scales(patch)
        if not out_features or not {LAST_FEATURE, *scales}.issuperset(out_features):
            raise ValueError(
                f"`out_features` is {list(out_features)}, but {name} (`name`) has {[LAST_FEATURE, *scales]}; "
                "choose from these."
            )
        if frozen:
            vit.requires_grad_(False)

        tokens = _TokenMap(vit, level=round(math.log2(patch)))
        # Only its children are registered here, so that the keys have no prefix of ours.
        self._tokens = (tokens,)
        for child_name, child in vit.named_children():
            self.add_module(child_name, child)
        for parameter_name, parameter in vit.named_parameters(recurse=False):
            self.register_parameter(parameter_name, parameter)

        self._pyramid_features = [feature for feature in scales if feature in out_features]
        if self._pyramid_features:
            self._add_pyramid(
                tokens, pyramid_channels, [scales[feature] for feature in self._pyramid_features]
            )

        strides = {feature: patch / scales.get(feature, 1.0) for feature in out_features}
        self._out_features = list(out_features)
        self._out_feature_strides = {
            f: int(each) if each.is_integer() else each for f, each in strides.items()
        }
        self._out_feature_channels = {
            feature: pyramid_channels if feature in scales else vit.num_features for feature in out_features
        }
        self._divisor = int(max(patch, *strides.values()))

    def _add_pyramid(self, tokens: _TokenMap, channels: int, scales: list[float]) -> None:
        try:
            pyramid = SimpleFeaturePyramid(tokens, LAST_FEATURE, channels, scales)
        except AssertionError:
            raise ValueError(
                f"`out_features` has {self._pyramid_features} of the pyramid; add what lies between them."
            ) from None
        for child_name, child in pyramid.named_children():
            if child is not tokens:
                self.add_module(child_name, child)

    @property
    def size_divisibility(self) -> int:
        """Sides of images must be multiples of the patch's and of the largest stride."""
        return self._divisor

    @property
    def pretrained_part(self) -> nn.Module:
        """The transformer, without the pyramid."""
        vit: nn.Module = self._tokens[0].vit
        return vit

    def forward(
        self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """
        Args:
            images: [B, C, H, W], normalized, H and W multiples of ``size_divisibility``.
            image_sizes: height and width of each image in the batch; None if nothing is padding.

        Returns:
            feature name -> [B, channels, H / stride, W / stride], zero beyond the images.

        Raises:
            ValueError: for other sides.
        """
        height, width = images.shape[-2:]
        if height % self._divisor or width % self._divisor:
            raise ValueError(
                f"This vision transformer takes images whose sides are multiples of {self._divisor} px, not "
                f"{width} x {height}; for query patches set INPUT.QUERY_PATCH.SIZE to such a number."
            )
        groups: dict[tuple[int, int], list[int]] = {}
        for i in range(len(images)):
            size = (height, width) if image_sizes is None else image_sizes[i]
            groups.setdefault((self._whole(size[0]), self._whole(size[1])), []).append(i)
        if list(groups) == [(height, width)]:
            return self._features(images)
        parts = [
            (members, self._features(images[members, :, : size[0], : size[1]]))
            for size, members in groups.items()
        ]
        features = {}
        for name, scale in self._out_feature_strides.items():
            example = parts[0][1][name]
            whole = example.new_zeros(
                (len(images), example.shape[1], round(height / scale), round(width / scale))
            )
            for members, own in parts:
                rows, columns = own[name].shape[-2:]
                whole[members, :, :rows, :columns] = own[name]
            features[name] = whole
        return features

    def _whole(self, side: int) -> int:
        """The side with what size_divisibility adds."""
        return math.ceil(side / self._divisor) * self._divisor

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images without padding."""
        tokens = self._tokens[0](images)[LAST_FEATURE]
        stages = [child for child_name, child in self.named_children() if child_name.startswith("simfp_")]
        features = {name: stage(tokens) for name, stage in zip(self._pyramid_features, stages)}
        return {name: tokens if name == LAST_FEATURE else features[name] for name in self._out_features}


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VisionTransformerBackbone:
    """Build ``MODEL.TIMM.NAME`` without pre-trained weights; those come from ``MODEL.WEIGHTS``."""
    return VisionTransformerBackbone(
        name=cfg.MODEL.TIMM.NAME,
        out_features=cfg.MODEL.TIMM.OUT_FEATURES,
        pyramid_channels=cfg.MODEL.TIMM.PYRAMID_CHANNELS,
        in_channels=input_shape.channels,
        frozen=cfg.MODEL.BACKBONE.FREEZE_AT > 0,
    )


def _pyramid_scales(patch: int) -> dict[str, float]:
    """Names of the features that can be made of a map of one token a patch, finest first, and their scales."""
    level = round(math.log2(patch))
    return {f"res{level - step}": 2.0**step for step in (2, 1, 0, -1)}


def _create_vit(name: str, in_channels: int) -> Any:
    """One of timm's vision transformers, which have no types, without its head and for images of any size."""
    timm = import_timm()
    check_timm_name(timm, name)
    refused = f"`name` is '{name}', which is no vision transformer of timm that takes images of any size"
    if name.split(".")[0] not in (
        *timm.list_models(module="vision_transformer"),
        *timm.list_models(module="eva"),
    ):
        raise ValueError(f"{refused}; CNNs are for MODEL.BACKBONE.NAME build_timm_backbone.")
    options = {"num_classes": 0, "global_pool": "", "in_chans": in_channels, "dynamic_img_size": True}
    try:
        return timm.create_model(name, pretrained=False, **options)
    except TypeError:  # there are older forms in these modules
        raise ValueError(f"{refused}; choose another one.") from None
