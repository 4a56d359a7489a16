"""UP-DETR pre-training: random query patch detection (Dai et al., CVPR 2021, arXiv 2011.09094, Section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.device_patches import with_patches
from updetr_d2.modeling.meta_arch.detr import output_sizes
from updetr_d2.modeling.meta_arch.object_detr import ObjectDETR
from updetr_d2.modeling.meta_arch.patch_queries import PatchQueryDETR
from updetr_d2.modeling.outputs import Outputs
from updetr_d2.modeling.patch_similarity import PatchSimilarity
from updetr_d2.modeling.postprocessing import query_patch_postprocess
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers.base import Decoded, Pyramid, Queries

__all__ = ["UPDETR"]


@META_ARCH_REGISTRY.register()
class UPDETR(ObjectDETR, PatchQueryDETR):
    """DETR whose object queries carry the features of query patches that it has to find in the image.

    The N object queries form M groups of N/M; patch j belongs to group j, and queries of different groups do
    not attend to each other.

    Args:
        num_patches: M, at training time; a divisor of ``num_queries``. 1 is the paper's single-query version.
        mask_ratio: probability that a query loses its patch in training, in [0, 1).
        query_shuffle: permute the object query embeddings in training.
        attention_mask: keep queries of different groups from attending to each other.
        match_within_groups: match the box of a patch with queries of its own group only.
        patch_similarity: the score of a query also counts how much what its box shows is like its patch.
        **object_detr_args: as for :class:`ObjectDETR`.

    Raises:
        ValueError: if ``num_patches`` does not divide ``num_queries`` or ``mask_ratio`` is out of range.
    """

    task = "pretraining"
    # The class head says "is a patch".
    pretraining_only = ("class_embed", "patch2query", "patch_similarity", "feature_align")

    @configurable
    def __init__(
        self,
        *,
        num_patches: int = 10,
        mask_ratio: float = 0.1,
        query_shuffle: bool = False,
        attention_mask: bool = True,
        match_within_groups: bool = False,
        patch_similarity: bool = False,
        **object_detr_args: Any,
    ) -> None:
        super().__init__(**object_detr_args)
        if num_patches < 1 or self.num_queries % num_patches:
            divisors = [m for m in range(1, self.num_queries + 1) if self.num_queries % m == 0]
            raise ValueError(
                f"`num_patches` ({num_patches}) must divide `num_queries` "
                f"({self.num_queries}); use one of {divisors}."
            )
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must be in [0, 1), not {mask_ratio}.")
        self.num_patches = num_patches
        self.group_size = self.num_queries // num_patches
        self.mask_ratio = mask_ratio
        self.query_shuffle = query_shuffle
        self.attention_mask = attention_mask
        self.match_within_groups = match_within_groups
        self.patch_similarity = PatchSimilarity(self.feature_dim) if patch_similarity else None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        updetr = cfg.MODEL.UPDETR
        return {
            **super().from_config(cfg),
            "num_patches": updetr.NUM_PATCHES,
            "mask_ratio": updetr.MASK_RATIO,
            "query_shuffle": updetr.QUERY_SHUFFLE,
            "attention_mask": updetr.ATTENTION_MASK,
            "match_within_groups": updetr.MATCH_WITHIN_GROUPS,
            "patch_similarity": updetr.PATCH_SIMILARITY,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: as for :meth:`DETR.forward`, with ``patches`` uint8 or float [m, 3, h, w] in
                0–255, all of one size; 1 ≤ m ≤ M, which may differ between images; or with a plan to make
                them (:mod:`~updetr_d2.modeling.device_patches`). In training
                ``instances`` holds the box of each patch, in the same order.

        Returns:
            in training a dict of weighted scalar losses; else a list of ``{"instances": Instances}`` with
            ``pred_boxes``, ``scores``, ``pred_patches``, the best query of each patch's group first.
        """
        return super().forward(with_patches(batched_inputs, self.device))

    def make_queries(self, batched_inputs: Sequence[dict]) -> Queries:
        return self.compose_queries(
            self.encode_patches(batched_inputs), [len(x["patches"]) for x in batched_inputs]
        )

    def encode_patches(self, batched_inputs: Sequence[dict]) -> Tensor:
        """Globally pooled CNN features ``[B, m, D]`` of the query patches, zero where an image has fewer."""
        counts = [len(x["patches"]) for x in batched_inputs]
        if min(counts) < 1 or max(counts) > self.num_patches:
            raise ValueError(
                f"Images with {min(counts)} to {max(counts)} query patches were given; the model takes 1 to "
                f"{self.num_patches} (MODEL.UPDETR.NUM_PATCHES)."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            return nn.utils.rnn.pad_sequence(list(self.pooled_patches(batched_inputs)), batch_first=True)

    def compose_queries(self, patch_features: Tensor, counts: Sequence[int] | None = None) -> Queries:
        """Give each patch's feature to the object queries of its group.

        Args:
            patch_features: ``[B, m, D]``.
            counts: patches of each image, at most m; None for m of each.

        Returns:
            the first m groups of G object queries.
        """
        num_groups = patch_features.shape[1]
        num_queries = num_groups * self.group_size
        embed = None if self.query_embed is None else self.query_embed.weight
        if self.training and self.query_shuffle and embed is not None:
            embed = embed[torch.randperm(len(embed), device=embed.device)]
        shown = patch_features
        if self.patch_similarity is not None:
            there = [each[:count] for each, count in zip(patch_features, counts or [num_groups] * len(shown))]
            shown = nn.utils.rnn.pad_sequence(
                self.patch_similarity.standardize_patches(there), batch_first=True
            )
        patches = self.patch2query(shown).repeat_interleave(self.group_size, dim=1)
        if self.training:
            kept = torch.rand(patches.shape[:2], device=patches.device) > self.mask_ratio
            patches = patches * kept[..., None]
        return Queries(
            embed=None if embed is None else embed[:num_queries],
            num_queries=num_queries,
            patches=patches,
            num_groups=num_groups,
            attn_mask=self.group_mask(num_queries),
            patch_features=patch_features,
            standardized_patches=None if self.patch_similarity is None else shown,
        )

    def group_mask(self, num_queries: int) -> Tensor | None:
        """bool ``[N, N]``, True between queries of different groups; None if nothing is masked."""
        if num_queries == self.group_size or not self.attention_mask:
            return None
        group = torch.arange(num_queries, device=self.device) // self.group_size
        return group[:, None] != group[None, :]

    def extra_outputs(self, outputs: Outputs, decoded: Decoded, queries: Queries, pyramid: Pyramid) -> None:
        super().extra_outputs(outputs, decoded, queries, pyramid)
        outputs.patch_features = queries.patch_features
        if self.patch_similarity is not None and queries.standardized_patches is not None:
            outputs.logits = outputs.logits + self.similarity_logits(
                outputs, queries.standardized_patches, pyramid
            )

    def similarity_logits(self, outputs: Outputs, patches: Tensor, pyramid: Pyramid) -> Tensor:
        """What the similarity with the patches ``[B, m, D]`` adds to all logits but "no object"."""
        assert self.patch_similarity is not None
        features = pyramid.features[self.in_feature]
        similarity = self.patch_similarity(
            features,
            pyramid.valid_part(),
            outputs.boxes,
            patches.repeat_interleave(self.group_size, dim=1)[:, : outputs.boxes.shape[2]],
        )[..., None]
        if self.class_loss == "softmax":
            classes = outputs.logits.shape[-1] - 1
            return F.pad(similarity.expand(*similarity.shape[:-1], classes), (0, 1))
        return similarity

    def add_targets(self, targets: BatchTargets, batched_inputs: list[dict], outputs: Outputs) -> None:
        if self.target_feature == self.in_feature:
            targets.features = outputs.patch_features
        else:
            super().add_targets(targets, batched_inputs, outputs)
        if self.match_within_groups:
            targets.group_size = self.group_size

    def inference(self, outputs: Outputs, images: ImageList, batched_inputs: list[dict]) -> list[dict]:
        assert outputs.patch_features is not None
        instances = query_patch_postprocess(
            outputs.logits[-1],
            outputs.boxes[-1],
            outputs.patch_features.shape[1],
            output_sizes(batched_inputs, images),
            [len(x["patches"]) for x in batched_inputs],
            class_loss=self.class_loss,
        )
        return [{"instances": each} for each in instances]
