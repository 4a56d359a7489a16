"""One-shot detection with UP-DETR: find all things of the class that a query patch shows (arXiv 2011.09094)."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from updetr_d2.modeling.meta_arch.patch_queries import PatchQueryDETR
from updetr_d2.modeling.transformers.base import Queries

__all__ = ["OneShotDETR"]


@META_ARCH_REGISTRY.register()
class OneShotDETR(PatchQueryDETR):
    """DETR whose object queries all carry the feature of their image's query patch.

    Its one class is "matches the patch". Several patches of a class (shots) count as their mean feature.

    Args:
        **detr_args: as for :class:`DETR`, with ``num_classes`` 1.

    Raises:
        ValueError: if there is more than one class.
    """

    task = "oneshot"
    # As in pre-training, the patches reach the queries through ``patch2query``.
    taken_from_pretraining = ("patch2query",)

    @configurable
    def __init__(self, **detr_args: Any) -> None:
        super().__init__(**detr_args)
        if self.num_classes != 1:
            raise ValueError(
                f"`num_classes` is {self.num_classes}; OneShotDETR has one class, 'matches the query "
                "patch': set it to 1."
            )

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: as for :meth:`DETR.forward`, with ``patches`` uint8 or float [k, 3, h, w] in
                0–255, k ≥ 1 patches of one class, all of one size; k may differ between images. In training
                ``instances`` holds all objects of that class, as class 0.

        Returns:
            in training a dict of weighted scalar losses; else a list of ``{"instances": Instances}``, in which
            ``scores`` says how well a box matches the query and ``pred_classes`` is 0.
        """
        return super().forward(batched_inputs)

    def make_queries(self, batched_inputs: Sequence[dict]) -> Queries:
        return self.compose_queries(self.pooled_patches(batched_inputs))

    def compose_queries(self, patch_features: tuple[Tensor, ...]) -> Queries:
        """Give the mean feature of each image's shots to all of its object queries.

        Args:
            patch_features: ``[k, D]`` of each of the B images.

        Raises:
            ValueError: if an image has no patch.
        """
        if any(len(shots) == 0 for shots in patch_features):
            raise ValueError("An image without query patch was given; OneShotDETR needs at least one each.")
        shots = torch.stack([shots.mean(dim=0) for shots in patch_features])
        embed = None if self.query_embed is None else self.query_embed.weight
        return Queries(
            embed=embed,
            num_queries=self.num_queries,
            patches=self.patch2query(shots)[:, None].expand(-1, self.num_queries, -1),
        )
