"""Pre-training on boxes without labels: DETReg (arXiv 2106.04550), with boxes, classes and features of choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn

from updetr_d2.modeling.backbone import pretrained_part
from updetr_d2.modeling.meta_arch.detr import DETR
from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.outputs import Outputs
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers.base import Decoded, Pyramid, Queries

__all__ = ["ObjectDETR"]


@META_ARCH_REGISTRY.register()
class ObjectDETR(DETR):
    """DETR that learns where objects are, and what a frozen CNN sees there, from boxes that no one has labeled.

    Every detector of the project can be pre-trained so: queries, transformer and denoising are those of
    :class:`DETR`. Classes are one, or clusters of what the boxes show; the samples' ``gt_classes`` tell.

    Args:
        feature_recon: reconstruct the CNN's feature of its box from each query.
        target_feature: name of that feature of the backbone; None for ``in_feature``.
        drop_iou: queries without a target whose box overlaps no target by more than this IoU do not count in the
            class loss (DropLoss, arXiv 2301.11320); 0 counts all.
        freeze_backbone: change nothing of the CNN, neither weights nor BatchNorm statistics; of a vision
            transformer the pyramid, which nobody has pre-trained, learns.
        **detr_args: as for :class:`DETR`.

    Raises:
        ValueError: if the backbone lacks the feature.
    """

    task = "pretraining_objects"
    # The class head says "is an object", or which cluster.
    pretraining_only: tuple[str, ...] = ("class_embed", "feature_align")

    @configurable
    def __init__(
        self,
        *,
        feature_recon: bool = True,
        target_feature: str | None = None,
        drop_iou: float = 0.0,
        freeze_backbone: bool = True,
        **detr_args: Any,
    ) -> None:
        super().__init__(**detr_args)
        features = self.backbone.output_shape()
        self.target_feature = target_feature or self.in_feature
        if feature_recon and self.target_feature not in features:
            raise ValueError(
                f"`target_feature` is '{self.target_feature}', but the backbone returns only {sorted(features)}; "
                "add it to the backbone's OUT_FEATURES."
            )
        self.feature_align: MLP | None = None
        if feature_recon:
            hidden_dim, channels = self.transformer.hidden_dim, features[self.target_feature].channels
            self.feature_align = MLP(hidden_dim, hidden_dim, channels, num_layers=2)
        self.drop_iou = drop_iou
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            pretrained_part(self.backbone).requires_grad_(False)
            self.backbone.eval()
        self.trains_backbone = any(parameter.requires_grad for parameter in self.backbone.parameters())

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "feature_recon": cfg.MODEL.UPDETR.FEATURE_RECON,
            "target_feature": cfg.MODEL.UPDETR.TARGET_FEATURE or None,
            "drop_iou": cfg.MODEL.UPDETR.DROP_IOU,
            "freeze_backbone": cfg.MODEL.UPDETR.FREEZE_BACKBONE,
        }

    def train(self, mode: bool = True) -> ObjectDETR:
        """As for every module, but a frozen CNN stays in evaluation: no new BatchNorm statistics, no dropout."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def extract_features(
        self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            return super().extract_features(images, image_sizes)

    def encode_crops(self, batched_inputs: Sequence[dict], feature: str) -> tuple[Tensor, ...]:
        """A globally pooled feature of what the boxes show, all crops of a batch in one pass.

        Args:
            batched_inputs: samples with ``patches`` [m, 3, h, w] in 0–255, all of one size; m may differ.
            feature: of the backbone.

        Returns:
            ``[m, D]`` of each image.
        """
        patches = torch.cat([x["patches"].to(self.device, non_blocking=True) for x in batched_inputs])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            pooled = self.backbone(self.normalize(patches))[feature].mean(dim=(2, 3))
        return pooled.split([len(x["patches"]) for x in batched_inputs])

    def extra_outputs(self, outputs: Outputs, decoded: Decoded, queries: Queries, pyramid: Pyramid) -> None:
        if self.feature_align is not None:
            outputs.features = LazyFeatures(self.feature_align, decoded.states)

    def box_targets(self, batched_inputs: list[dict]) -> BatchTargets:
        targets = super().box_targets(batched_inputs)
        targets.drop_iou = self.drop_iou
        return targets

    @torch.no_grad()
    def add_targets(self, targets: BatchTargets, batched_inputs: list[dict], outputs: Outputs) -> None:
        if self.feature_align is not None:
            features = self.encode_crops(batched_inputs, self.target_feature)
            targets.features = nn.utils.rnn.pad_sequence(list(features), batch_first=True)

    def inference(self, outputs: Outputs, images: ImageList, batched_inputs: list[dict]) -> list[dict]:
        """Objects of any class or cluster, as class 0."""
        last = Outputs(objectness(outputs.logits[-1:], self.class_loss), outputs.boxes[-1:])
        return super().inference(last, images, batched_inputs)


def objectness(logits: Tensor, class_loss: str) -> Tensor:
    """Logits ``[..., K+1]`` ("softmax") or ``[..., K]`` ("focal") -> those of one class, "is an object"."""
    if class_loss == "focal":
        return logits.amax(dim=-1, keepdim=True)
    return torch.cat([logits[..., :-1].logsumexp(dim=-1, keepdim=True), logits[..., -1:]], dim=-1)


@dataclass
class LazyFeatures:
    """Reconstructed features ``[L, B, N, D]`` that are computed where they are indexed.

    Training asks for those of matched queries only, a tenth of them or fewer.

    Attributes:
        head: from C channels to D.
        states: decoder states ``[L, B, N, C]``.
    """

    head: nn.Module
    states: Tensor

    def __getitem__(self, index: Any) -> Tensor:
        """What ``features[index]`` would be, for any index of the first three dimensions."""
        return self.head(self.states[index])
