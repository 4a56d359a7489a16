"""Backbones by ``MODEL.BACKBONE.NAME``: Detectron2's, and those of the timm library, "build_timm_backbone".

timm is optional (``pip install updetr_d2[timm]``); it is imported when such a backbone is built.
"""

import difflib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from updetr_d2.modeling.fast.timm_folding import FoldedTimmNet

__all__ = ["TimmBackbone", "build_backbone", "build_timm_backbone", "pretrained_part"]


def build_backbone(cfg: CfgNode) -> Backbone:
    """Detectron2's ``build_backbone``, for which ``MODEL.RESNETS.DEPTH`` 18 or 34 is enough."""
    if cfg.MODEL.RESNETS.DEPTH in (18, 34):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64  # Detectron2 asks for it, and takes no other
    backbone = modeling.build_backbone(cfg)
    if cfg.MODEL.DETR.RECOMPUTE_BACKBONE:
        recompute_stages(backbone)
    return backbone


class RecomputedStage(nn.Sequential):
    """A stage that keeps only its input for the backward pass, which then computes the rest again."""

    def forward(self, x: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return checkpoint(super().forward, x, use_reentrant=False) if trains else super().forward(x)


def recompute_stages(backbone: Backbone) -> None:
    """Make the stages of one of Detectron2's ResNets :class:`RecomputedStage`, in place.

    Raises:
        ValueError: for a backbone of another kind.
    """
    if not isinstance(backbone, ResNet):
        raise ValueError(
            f"MODEL.DETR.RECOMPUTE_BACKBONE is for Detectron2's ResNets, not for {type(backbone).__name__}: set "
            "it to False."
        )
    backbone.stages = [RecomputedStage(*stage.children()) for stage in backbone.stages]
    for name, stage in zip(backbone.stage_names, backbone.stages):
        setattr(backbone, name, stage)


def pretrained_part(backbone: nn.Module) -> nn.Module:
    """What of a backbone has been trained elsewhere: all of it, or what it says itself."""
    part: nn.Module = getattr(backbone, "pretrained_part", backbone)
    return part


class TimmBackbone(Backbone):
    """A timm model with Detectron2's names for its features: "res2" ... "res5" are strides 4 ... 32.

    All BatchNorms are frozen, as in DETR. The state dict has the keys of timm's ``features_only`` model
    without any prefix, which for most convolutional networks are those of the plain timm model.

    Args:
        name: any timm model that supports ``features_only``.
        out_features: names of the features to return.
        in_channels: channels of the input image.
        freeze_at: 0 trains everything; s >= 1 freezes all up to and including the deepest feature whose
            stride is at most 2**s (1: stride 2, 2: "res2", ... 5: "res5"), Detectron2's meaning of
            ``MODEL.BACKBONE.FREEZE_AT`` for ResNets.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if there is no such model or feature, with what there is.
    """

    def __init__(
        self,
        *,
        name: str,
        out_features: Sequence[str],
        in_channels: int = 3,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        timm = import_timm()
        net = _create_features_model(timm, name, in_channels)
        # The last feature of each stride; transformers have several of the same.
        indices = {_feature_name(r): i for i, r in enumerate(net.feature_info.reduction())}
        if not out_features or any(feature not in indices for feature in out_features):
            raise ValueError(
                f"`out_features` is {list(out_features)}, but {name} (`name`) has "
                f"{sorted(indices)}; choose from these."
            )
        deepest = max(indices[feature] for feature in out_features)
        if deepest < len(net.feature_info.reduction()) - 1:
            # Without the layers that nothing uses, which would have no gradient.
            net = _create_features_model(timm, name, in_channels, out_indices=tuple(range(deepest + 1)))
            _drop_later_blocks(net)
        net = timm.layers.freeze_batch_norm_2d(net)
        _freeze_stages(net, freeze_at)

        # Only the children are registered here, so that the keys have no prefix of ours.
        self._net = (net,)
        self._folded: FoldedTimmNet | None = None
        for child_name, child in net.named_children():
            self.add_module(child_name, child)
        self._indices = {feature: indices[feature] for feature in out_features}
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

        channels, strides = net.feature_info.channels(), net.feature_info.reduction()
        self._out_features = list(out_features)
        self._out_feature_channels = {f: channels[i] for f, i in self._indices.items()}
        self._out_feature_strides = {f: strides[i] for f, i in self._indices.items()}

    @property
    def size_divisibility(self) -> int:
        """Largest stride: TensorFlow-style "same" padding depends on the size, so it must not vary."""
        return max(self._out_feature_strides.values())

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        self._net[0].train(mode)
        if self._folded is not None:
            self._folded.drop()  # fused optimizers and .data change weights unnoticed
        return self

    def fold_frozen(self) -> None:
        """Compute features without gradients in fewer passes from now on, see ``modeling/fast``."""
        self._folded = FoldedTimmNet(self._net[0])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: [B, C, H, W], normalised.

        Returns:
            feature name -> [B, channels, H / stride, W / stride].
        """
        wants_gradient = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if wants_gradient and not recorded and self._folded is not None:
            self._folded.drop()  # a step of the optimizer may follow
        if self._folded is None or wants_gradient or recorded:
            # Convolutions of small CNNs take two thirds of the time in this order, their weights stay as they are.
            features = self._net[0](
                images if recorded else images.contiguous(memory_format=torch.channels_last)
            )
        else:
            features = self._folded(images)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return {name: features[index] for name, index in self._indices.items()}


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build ``MODEL.TIMM.NAME`` without pre-trained weights; those come from ``MODEL.WEIGHTS``."""
    return TimmBackbone(
        name=cfg.MODEL.TIMM.NAME,
        out_features=cfg.MODEL.TIMM.OUT_FEATURES,
        in_channels=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def import_timm() -> ModuleType:
    """
    Raises:
        ImportError: that says how to install it.
    """
    try:
        import timm
        import timm.layers
    except ImportError:
        raise ImportError(
            "MODEL.BACKBONE.NAME build_timm_backbone and build_timm_vit_backbone need the timm library: "
            "pip install updetr_d2[timm]."
        ) from None
    return timm


def check_timm_name(timm: ModuleType, name: str) -> None:
    """
    Raises:
        ValueError: if timm has no such model, with similar names.
    """
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(f"`name` is '{name}', which timm does not have; similar names: {similar}.")


def _create_features_model(timm: ModuleType, name: str, in_channels: int, **options: Any) -> Any:
    """One of timm's networks with ``feature_info``; timm has no types."""
    check_timm_name(timm, name)
    if name.split(".")[0] in timm.list_models(module="vision_transformer"):
        options["dynamic_img_size"] = True  # else images of one size only
    try:
        return timm.create_model(name, pretrained=False, features_only=True, in_chans=in_channels, **options)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"`name` is '{name}', which timm cannot build with features_only ({error}); choose another model."
        ) from error


def _feature_name(stride: int) -> str:
    return f"res{stride.bit_length() - 1}"


def _drop_later_blocks(net: Any) -> None:
    """Drop what follows the last feature where timm keeps and runs it (EfficientNets, MobileNets)."""
    parent, _, index = net.feature_info.get_dicts()[-1]["module"].rpartition(".")
    sequence = dict(net.named_modules()).get(parent)
    if isinstance(sequence, nn.Sequential) and sequence is not net:
        del sequence[int(index) + 1 :]


def _freeze_stages(net: Any, freeze_at: int) -> None:
    """Freeze a network, in order of execution, up to its deepest feature of stride 2**freeze_at or less."""
    last = [info["module"] for info in net.feature_info.get_dicts() if info["reduction"] <= 2**freeze_at]
    if freeze_at < 1 or not last:
        return
    # `features_only` models may flatten a sequence ("stages.0" -> "stages_0") or wrap the model.
    candidates = {last[-1], last[-1].replace(".", "_"), f"model.{last[-1]}"}
    modules = dict(net.named_modules())
    end = next((name for name in modules if name in candidates), None)
    if end is None:
        raise ValueError(
            f"`freeze_at` is {freeze_at}, but stages of this timm model cannot be told apart; set it to 0."
        )
    names = list(modules)
    inside = [i for i, name in enumerate(names) if name == end or name.startswith(f"{end}.")]
    for name in names[: inside[-1] + 1]:
        for parameter in modules[name].parameters(recurse=False):
            parameter.requires_grad_(False)
