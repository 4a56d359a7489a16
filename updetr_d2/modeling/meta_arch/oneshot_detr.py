"""One-shot detection with UP-DETR: find all things of the class that a query patch shows (arXiv 2011.09094)."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn

from updetr_d2.modeling.meta_arch.detr import DETR, padding_mask
from updetr_d2.modeling.meta_arch.patch_features import encode_patches

__all__ = ["OneShotDETR"]


@META_ARCH_REGISTRY.register()
class OneShotDETR(DETR):
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
    def __init__(self, **detr_args) -> None:
        super().__init__(**detr_args)
        if self.num_classes != 1:
            raise ValueError(
                f"MODEL.DETR.NUM_CLASSES is {self.num_classes}; OneShotDETR has one class, 'matches the query "
                "patch': set it to 1."
            )
        self.patch2query = nn.Linear(self.feature_dim, self.query_embed.embedding_dim)

    def forward(self, batched_inputs: list[dict]):
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

    def compute_heads(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        features = self.backbone(images.tensor)[self.in_feature]
        query_position = self.compose_queries(encode_patches(self, batched_inputs))
        states, _ = self.run_transformer(features, padding_mask(images), query_position)
        return self.predict(states)

    def compose_queries(self, patch_features: tuple[Tensor, ...]) -> Tensor:
        """Add the mean feature of each image's shots to all of its object queries.

        Args:
            patch_features: ``[k, D]`` of each of the B images.

        Returns:
            ``[B, N, C]``.

        Raises:
            ValueError: if an image has no patch.
        """
        if any(len(shots) == 0 for shots in patch_features):
            raise ValueError("An image without query patch was given; OneShotDETR needs at least one each.")
        queries = torch.stack([shots.mean(dim=0) for shots in patch_features])
        return self.patch2query(queries)[:, None] + self.query_embed.weight
