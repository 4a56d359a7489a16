"""UP-DETR pre-training: random query patch detection (Dai et al., CVPR 2021, arXiv 2011.09094, Section 3)."""

from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn

from updetr_d2.modeling.meta_arch.detr import DETR, output_sizes, padding_mask
from updetr_d2.modeling.meta_arch.patch_features import encode_patches
from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.postprocessing import query_patch_postprocess
from updetr_d2.modeling.targets import BatchTargets

__all__ = ["UPDETR"]


@META_ARCH_REGISTRY.register()
class UPDETR(DETR):
    """DETR whose object queries carry the features of query patches that it has to find in the image.

    The N object queries form M groups of N/M; patch j belongs to group j, and queries of different groups do
    not attend to each other.

    Args:
        num_patches: M, at training time; a divisor of ``num_queries``. 1 is the paper's single-query version.
        mask_ratio: probability that a query loses its patch in training, in [0, 1).
        query_shuffle: permute the object query embeddings in training.
        attention_mask: keep queries of different groups from attending to each other.
        match_within_groups: match the box of a patch with queries of its own group only.
        feature_recon: reconstruct the patch feature from each query.
        freeze_backbone: change nothing of the CNN, neither weights nor BatchNorm statistics.
        **detr_args: as for :class:`DETR`.

    Raises:
        ValueError: if ``num_patches`` does not divide ``num_queries`` or ``mask_ratio`` is out of range.
    """

    task = "pretraining"
    pretraining_only = ("class_embed", "patch2query", "feature_align")  # the class head says "is a patch"

    @configurable
    def __init__(
        self,
        *,
        num_patches: int = 10,
        mask_ratio: float = 0.1,
        query_shuffle: bool = False,
        attention_mask: bool = True,
        match_within_groups: bool = False,
        feature_recon: bool = True,
        freeze_backbone: bool = True,
        **detr_args,
    ) -> None:
        super().__init__(**detr_args)
        if num_patches < 1 or self.num_queries % num_patches:
            divisors = [m for m in range(1, self.num_queries + 1) if self.num_queries % m == 0]
            raise ValueError(
                f"MODEL.UPDETR.NUM_PATCHES ({num_patches}) must divide MODEL.DETR.NUM_QUERIES "
                f"({self.num_queries}); use one of {divisors}."
            )
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"MODEL.UPDETR.MASK_RATIO must be in [0, 1), not {mask_ratio}.")
        self.num_patches = num_patches
        self.group_size = self.num_queries // num_patches
        self.mask_ratio = mask_ratio
        self.query_shuffle = query_shuffle
        self.attention_mask = attention_mask
        self.match_within_groups = match_within_groups
        hidden_dim = self.query_embed.embedding_dim
        self.patch2query = nn.Linear(self.feature_dim, hidden_dim)
        self.feature_align = (
            MLP(hidden_dim, hidden_dim, self.feature_dim, num_layers=2) if feature_recon else None
        )
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.backbone.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, cfg):
        updetr = cfg.MODEL.UPDETR
        return {
            **super().from_config(cfg),
            "num_patches": updetr.NUM_PATCHES,
            "mask_ratio": updetr.MASK_RATIO,
            "query_shuffle": updetr.QUERY_SHUFFLE,
            "attention_mask": updetr.ATTENTION_MASK,
            "match_within_groups": updetr.MATCH_WITHIN_GROUPS,
            "feature_recon": updetr.FEATURE_RECON,
            "freeze_backbone": updetr.FREEZE_BACKBONE,
        }

    def train(self, mode: bool = True) -> "UPDETR":
        """As for every module, but a frozen CNN stays in evaluation: no new BatchNorm statistics, no dropout."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as for :meth:`DETR.forward`, with ``patches`` uint8 or float [m, 3, h, w] in
                0–255, all of one size; 1 ≤ m ≤ M, which may differ between images. In training
                ``instances`` holds the box of each patch, in the same order.

        Returns:
            in training a dict of weighted scalar losses; else a list of ``{"instances": Instances}`` with
            ``pred_boxes``, ``scores``, ``pred_patches``, the best query of each patch's group first.
        """
        return super().forward(batched_inputs)

    def forward_heads(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """:meth:`DETR.forward_heads` plus ``pred_features`` [L,B,N,D] and ``patch_features`` [B,M,D]."""
        heads = super().forward_heads(batched_inputs)
        if "pred_features" in heads:
            heads["pred_features"] = heads["pred_features"][:]
        return heads

    def compute_heads(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """:meth:`DETR.compute_heads` plus ``pred_features``, not yet computed, and ``patch_features`` [B,M,D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            features = self.backbone(images.tensor)[self.in_feature]
            patch_features = self.encode_patches(batched_inputs)
        query_position = self.compose_queries(patch_features)
        states, _ = self.run_transformer(
            features, padding_mask(images), query_position, self.group_mask(query_position.shape[1])
        )
        heads = {**self.predict(states), "patch_features": patch_features}
        if self.feature_align is not None:
            heads["pred_features"] = LazyFeatures(self.feature_align, states)
        return heads

    def encode_patches(self, batched_inputs: list[dict]) -> Tensor:
        """Globally pooled CNN features ``[B, m, D]`` of the query patches, zero where an image has fewer."""
        counts = [len(x["patches"]) for x in batched_inputs]
        if min(counts) < 1 or max(counts) > self.num_patches:
            raise ValueError(
                f"Images with {min(counts)} to {max(counts)} query patches were given; the model takes 1 to "
                f"{self.num_patches} (MODEL.UPDETR.NUM_PATCHES)."
            )
        return nn.utils.rnn.pad_sequence(encode_patches(self, batched_inputs), batch_first=True)

    def compose_queries(self, patch_features: Tensor) -> Tensor:
        """Add each patch's feature to the object queries of its group.

        Args:
            patch_features: ``[B, m, D]``.

        Returns:
            ``[B, m·G, C]`` of the first m groups of G object queries.
        """
        patch_queries = self.patch2query(patch_features).repeat_interleave(self.group_size, dim=1)
        embeddings = self.query_embed.weight
        if self.training:
            if self.query_shuffle:
                embeddings = embeddings[torch.randperm(len(embeddings), device=embeddings.device)]
            kept = torch.rand(patch_queries.shape[:2], device=patch_queries.device) > self.mask_ratio
            patch_queries = patch_queries * kept[..., None]
        return patch_queries + embeddings[: patch_queries.shape[1]]

    def group_mask(self, num_queries: int) -> Tensor | None:
        """bool ``[N, N]``, True between queries of different groups; None if nothing is masked."""
        if num_queries == self.group_size or not self.attention_mask:
            return None
        group = torch.arange(num_queries, device=self.device) // self.group_size
        return group[:, None] != group[None, :]

    def prepare_targets(self, batched_inputs: list[dict], heads: dict[str, Tensor]) -> BatchTargets:
        targets = super().prepare_targets(batched_inputs, heads)
        targets.features = heads["patch_features"]
        if self.match_within_groups:
            targets.group_size = self.group_size
        return targets

    def inference(
        self, heads: dict[str, Tensor], images: ImageList, batched_inputs: list[dict]
    ) -> list[dict]:
        return [
            {"instances": instances}
            for instances in query_patch_postprocess(
                heads["pred_logits"][-1],
                heads["pred_boxes"][-1],
                heads["patch_features"].shape[1],
                output_sizes(batched_inputs, images),
                [len(x["patches"]) for x in batched_inputs],
            )
        ]


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

    def __getitem__(self, index) -> Tensor:
        """What ``features[index]`` would be, for any index of the first three dimensions."""
        return self.head(self.states[index])
