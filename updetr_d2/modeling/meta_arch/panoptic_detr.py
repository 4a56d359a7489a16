"""DETR with masks: instance and panoptic segmentation (Carion et al., ECCV 2020, Section 4.4)."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from updetr_d2.modeling.mask_head import AttentionMap, MaskHead, QueryMasks
from updetr_d2.modeling.meta_arch.detr import DETR, output_sizes
from updetr_d2.modeling.outputs import Outputs
from updetr_d2.modeling.panoptic_postprocessing import (
    instance_masks,
    panoptic_segmentation,
    upsample_masks,
)
from updetr_d2.modeling.targets import BatchTargets, pad_masks
from updetr_d2.modeling.transformers.base import Decoded, Pyramid, Queries

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
        **detr_args: Any,
    ) -> None:
        super().__init__(**detr_args)
        if num_thing_classes > self.num_classes:
            raise ValueError(
                f"`num_thing_classes` ({num_thing_classes}) is more than "
                f"`num_classes` ({self.num_classes}), which counts things and stuff."
            )
        features = self.backbone.output_shape()
        missing = [name for name in fpn_features if name not in features]
        if missing:
            raise ValueError(
                f"`fpn_features` names {missing}, but the backbone returns only "
                f"{sorted(features)}; add them to the backbone's OUT_FEATURES."
            )
        self.freeze_detr = freeze_detr
        if freeze_detr:
            self.requires_grad_(False)  # what there is so far: everything but the masks
        hidden_dim = self.transformer.hidden_dim
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
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
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

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
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

    @property
    def trains_detector(self) -> bool:
        return not self.freeze_detr

    def extra_outputs(self, outputs: Outputs, decoded: Decoded, queries: Queries, pyramid: Pyramid) -> None:
        padding = pyramid.paddings[pyramid.coarsest]
        outputs.masks = QueryMasks(
            head=self.mask_head,
            context=pyramid.levels[pyramid.coarsest] * self.feature_scale,
            attention=self.bbox_attention(decoded.states[-1], decoded.memory, padding),
            fpn_features=[pyramid.features[name] * self.feature_scale for name in self.fpn_features],
            padded_size=pyramid.image_size,
        )

    def add_targets(self, targets: BatchTargets, batched_inputs: list[dict], outputs: Outputs) -> None:
        assert outputs.masks is not None
        masks = [x["instances"].gt_masks for x in batched_inputs]
        targets.masks = pad_masks(masks, outputs.masks.padded_size, self.device)

    def inference(self, outputs: Outputs, images: ImageList, batched_inputs: list[dict]) -> list[dict]:
        assert outputs.masks is not None
        results = super().inference(outputs, images, batched_inputs)
        all_masks = outputs.masks[:]
        for i, (result, size) in enumerate(zip(results, output_sizes(batched_inputs, images))):
            masks = upsample_masks(all_masks[i], outputs.masks.padded_size, images.image_sizes[i])
            instances = result["instances"]
            instances.pred_masks = instance_masks(masks[instances.query], size, self.mask_threshold)
            result["panoptic_seg"] = panoptic_segmentation(
                outputs.logits[-1, i],
                masks,
                size,
                num_thing_classes=self.num_thing_classes,
                score_threshold=self.score_threshold,
                min_area=self.min_segment_area,
                class_loss=self.class_loss,
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
