"""DETR with masks: instance and panoptic segmentation (Carion et al., ECCV 2020, Section 4.4)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from updetr_d2.modeling.mask_head import AttentionMap, MaskHead, QueryMasks
from updetr_d2.modeling.meta_arch.detr import DETR, output_sizes, padding_mask, resize_padding
from updetr_d2.modeling.panoptic_postprocessing import (
    instance_masks,
    panoptic_segmentation,
    upsample_masks,
)
from updetr_d2.modeling.targets import BatchTargets, pad_masks

__all__ = ["PanopticDETR"]


@META_ARCH_REGISTRY.register()
class PanopticDETR(DETR):
    """DETR on things and stuff, with a mask for every query.

    Trained either jointly, or in two steps: boxes first, then with ``freeze_detr`` the mask head alone.

    Args:
        num_heads: attention heads of the attention maps.
        fpn_features: names of three backbone features that refine the masks, the coarsest first.
        feature_scale: factor on all features before the mask head, for a backbone with activations unlike a
            ResNet's.
        num_thing_classes: classes below are things, the others stuff.
        softmax_over_heads: see :class:`AttentionMap`.
        freeze_detr: train the mask head only. The detector keeps its dropout, as in the published recipe.
        mask_threshold, score_threshold, min_segment_area: see ``panoptic_postprocessing``.
        **detr_args: as for :class:`DETR`.

    Raises:
        ValueError: if the backbone lacks one of ``fpn_features`` or there are more things than classes.
    """

    task = "panoptic"

    @configurable
    def __init__(
        self,
        *,
        num_heads: int = 8,
        fpn_features: tuple[str, ...] = ("res4", "res3", "res2"),
        feature_scale: float = 1.0,
        num_thing_classes: int,
        softmax_over_heads: bool = False,
        freeze_detr: bool = False,
        mask_threshold: float = 0.5,
        score_threshold: float = 0.85,
        min_segment_area: int = 4,
        **detr_args,
    ) -> None:
        super().__init__(**detr_args)
        if num_thing_classes > self.num_classes:
            raise ValueError(
                f"MODEL.MASK_HEAD.NUM_THING_CLASSES ({num_thing_classes}) is more than "
                f"MODEL.DETR.NUM_CLASSES ({self.num_classes}), which counts things and stuff."
            )
        features = self.backbone.output_shape()
        missing = [name for name in fpn_features if name not in features]
        if missing:
            raise ValueError(
                f"MODEL.MASK_HEAD.IN_FEATURES names {missing}, but the backbone returns only "
                f"{sorted(features)}; add them to the backbone's OUT_FEATURES."
            )
        self.freeze_detr = freeze_detr
        if freeze_detr:
            self.requires_grad_(False)  # what there is so far: everything but the masks
        hidden_dim = self.query_embed.embedding_dim
        self.fpn_features = tuple(fpn_features)
        self.bbox_attention = AttentionMap(
            hidden_dim=hidden_dim, num_heads=num_heads, softmax_over_heads=softmax_over_heads
        )
        self.mask_head = MaskHead(
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            fpn_channels=[features[name].channels for name in fpn_features],
        )
        self.feature_scale = feature_scale
        self.num_thing_classes = num_thing_classes
        self.mask_threshold = mask_threshold
        self.score_threshold = score_threshold
        self.min_segment_area = min_segment_area

    @classmethod
    def from_config(cls, cfg):
        head = cfg.MODEL.MASK_HEAD
        return {
            **super().from_config(cfg),
            "num_heads": cfg.MODEL.DETR.NHEADS,
            "fpn_features": head.IN_FEATURES,
            "feature_scale": head.FEATURE_SCALE,
            "num_thing_classes": head.NUM_THING_CLASSES or count_thing_classes(cfg),
            "softmax_over_heads": head.SOFTMAX_OVER_HEADS,
            "freeze_detr": head.FREEZE_DETR,
            "mask_threshold": head.MASK_THRESHOLD,
            "score_threshold": head.SCORE_THRESHOLD,
            "min_segment_area": head.MIN_SEGMENT_AREA,
        }

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as for :meth:`DETR.forward`; in training ``instances`` has ``gt_masks``, BitMasks
                of the size of ``image``, as well.

        Returns:
            in training a dict of weighted scalar losses; else a list of dicts with ``instances`` (as for
            DETR, with bool ``pred_masks`` [N, height, width]) and ``panoptic_seg``: an int32 map
            [height, width] and Detectron2's ``segments_info``.
        """
        return super().forward(batched_inputs)

    def forward_heads(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """:meth:`DETR.forward_heads` plus ``pred_masks`` [B,N,h,w], logits in the finest feature's stride."""
        heads = super().forward_heads(batched_inputs)
        heads["pred_masks"] = heads.pop("query_masks").all()
        return heads

    def compute_heads(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor | QueryMasks]:
        """:meth:`DETR.compute_heads` plus ``query_masks``, from which masks are computed when needed."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detr):
            features = self.backbone(images.tensor)
            projected = self.input_proj(features[self.in_feature])
            padding = resize_padding(padding_mask(images), projected.shape[-2:])
            query_position = self.query_embed.weight.expand(len(images), -1, -1)
            states, memory = self.attend(projected, padding, query_position)
            heads = self.predict(states)
        heads["query_masks"] = QueryMasks(
            head=self.mask_head,
            context=projected * self.feature_scale,
            attention=self.bbox_attention(states[-1], memory, padding),
            fpn_features=[features[name] * self.feature_scale for name in self.fpn_features],
            padded_size=tuple(images.tensor.shape[-2:]),
        )
        return heads

    def prepare_targets(self, batched_inputs: list[dict], heads: dict) -> BatchTargets:
        targets = super().prepare_targets(batched_inputs, heads)
        masks = [x["instances"].gt_masks for x in batched_inputs]
        targets.masks = pad_masks(masks, heads["query_masks"].padded_size, self.device)
        return targets

    def inference(self, heads: dict, images: ImageList, batched_inputs: list[dict]) -> list[dict]:
        results = super().inference(heads, images, batched_inputs)
        query_masks = heads["query_masks"]
        all_masks = query_masks.all()
        for i, (result, size) in enumerate(zip(results, output_sizes(batched_inputs, images))):
            masks = upsample_masks(all_masks[i], query_masks.padded_size, images.image_sizes[i])
            result["instances"].pred_masks = instance_masks(masks, size, self.mask_threshold)
            result["panoptic_seg"] = panoptic_segmentation(
                heads["pred_logits"][-1, i],
                masks,
                size,
                num_thing_classes=self.num_thing_classes,
                score_threshold=self.score_threshold,
                min_area=self.min_segment_area,
            )
        return results


def count_thing_classes(cfg: CfgNode) -> int:
    """Number of thing classes of the first training data set.

    Raises:
        ValueError: if its metadata do not tell.
    """
    names = cfg.DATASETS.TRAIN
    thing_ids = MetadataCatalog.get(names[0]).get("thing_dataset_id_to_contiguous_id") if names else None
    if thing_ids is None:
        raise ValueError(
            f"Which classes are things is not known from DATASETS.TRAIN {tuple(names)}: set "
            "MODEL.MASK_HEAD.NUM_THING_CLASSES to their number."
        )
    return len(thing_ids)
