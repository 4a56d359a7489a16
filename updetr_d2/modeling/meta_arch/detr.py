"""DETR (Carion et al., ECCV 2020, arXiv 2005.12872) as a Detectron2 meta-architecture."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.backbone import build_backbone
from updetr_d2.modeling.criterion import build_criterion
from updetr_d2.modeling.fast.folding import fold_frozen_batchnorm
from updetr_d2.modeling.fused_resnet import fuse_resnet_blocks
from updetr_d2.modeling.mlp import MLP
from updetr_d2.modeling.position_encoding import SinePositionEncoding
from updetr_d2.modeling.postprocessing import detector_postprocess
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers.transformer import Transformer

__all__ = ["DETR"]


@META_ARCH_REGISTRY.register()
class DETR(nn.Module):
    """End-to-end object detection with a transformer.

    Args:
        backbone: any Detectron2 backbone.
        in_feature: name of the backbone feature that the transformer sees.
        transformer: the encoder-decoder.
        hidden_dim: channels C of the transformer.
        num_queries: object queries N.
        num_classes: foreground classes K.
        criterion: module (heads, BatchTargets) -> (losses, metrics); None for inference only.
        pixel_mean, pixel_std: per channel, in the order and range of the input images.

    Raises:
        ValueError: if the backbone has no feature ``in_feature``.
    """

    # Name in ``updetr_d2.tasks.TASKS``: decides on data, evaluation and checks.
    task: str = "detection"
    # Modules that only pre-training has use for: a checkpoint does not give them to models that have others.
    pretraining_only: tuple[str, ...] = ()
    # Those of them that mean the same in this model, which therefore takes them.
    taken_from_pretraining: tuple[str, ...] = ()

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str = "res5",
        transformer: Transformer,
        hidden_dim: int = 256,
        num_queries: int = 100,
        num_classes: int,
        criterion: nn.Module | None = None,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        features = backbone.output_shape()
        if in_feature not in features:
            raise ValueError(
                f"MODEL.DETR.IN_FEATURE is '{in_feature}', but the backbone returns only "
                f"{sorted(features)}; add it to the backbone's OUT_FEATURES."
            )
        self.backbone = backbone
        self.in_feature = in_feature
        self.transformer = transformer
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.criterion = criterion
        self.position_encoding = SinePositionEncoding(hidden_dim)
        self.feature_dim = features[in_feature].channels
        self.input_proj = nn.Conv2d(self.feature_dim, hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Scalars of the last training step that are logged, not trained.
        self.training_metrics: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg):
        detr = cfg.MODEL.DETR
        return {
            "backbone": fuse_resnet_blocks(fold_frozen_batchnorm(build_backbone(cfg))),
            "in_feature": detr.IN_FEATURE,
            "transformer": Transformer(
                hidden_dim=detr.HIDDEN_DIM,
                num_heads=detr.NHEADS,
                num_encoder_layers=detr.ENC_LAYERS,
                num_decoder_layers=detr.DEC_LAYERS,
                dim_feedforward=detr.DIM_FEEDFORWARD,
                dropout=detr.DROPOUT,
                pre_norm=detr.PRE_NORM,
                recompute_encoder=detr.RECOMPUTE_ENCODER,
            ),
            "hidden_dim": detr.HIDDEN_DIM,
            "num_queries": detr.NUM_QUERIES,
            "num_classes": detr.NUM_CLASSES,
            "criterion": build_criterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: samples in Detectron2's format: ``image`` uint8 or float [3, H, W] in 0–255, in
                training ``instances`` (``gt_boxes`` XYXY in the pixels of ``image``, ``gt_classes``), for
                inference optionally ``height`` and ``width`` of the original image.

        Returns:
            in training a dict of weighted scalar losses; else a list of ``{"instances": Instances}`` with
            ``pred_boxes`` (XYXY, original pixels), ``scores`` in [0, 1], ``pred_classes`` of all N queries.
        """
        images = self.preprocess_images(batched_inputs)
        heads = self.compute_heads(images, batched_inputs)
        if self.training:
            losses, metrics = self.criterion(heads, self.prepare_targets(batched_inputs, heads))
            padding = torch.full((), padded_share(images), device=self.device)
            self.training_metrics = {**metrics, "padded_share": padding}
            return losses
        return self.inference(heads, images, batched_inputs)

    def forward_heads(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Raw outputs of all heads.

        Args:
            batched_inputs: as for :meth:`forward`.

        Returns:
            ``pred_logits`` [L,B,N,K+1] and ``pred_boxes`` [L,B,N,4] (cx, cy, w, h as fractions of the image).
        """
        return self.compute_heads(self.preprocess_images(batched_inputs), batched_inputs)

    def preprocess_images(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size, without a divisor: DETR needs none."""
        images = [self.normalize(x["image"].to(self.device, non_blocking=True)) for x in batched_inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def normalize(self, pixels: Tensor) -> Tensor:
        """``[..., 3, H, W]`` in 0–255 -> float32 with the statistics of the CNN's training."""
        return (pixels.float() - self.pixel_mean) / self.pixel_std

    def compute_heads(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        return self.detect(images.tensor, padding_mask(images))

    def forward_tensors(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The detector from tensors to tensors, for export (``tools/export.py``).

        Args:
            pixels: float ``[B, 3, H, W]`` in 0–255, channels in ``INPUT.FORMAT``, each image in the upper left
                corner. H and W are multiples of ``backbone.size_divisibility``; the padding may hold anything.
            sizes: integers ``[B, 2]``, height and width of each image.

        Returns:
            logits ``[B, N, K+1]`` and boxes ``[B, N, 4]`` (cx, cy, w, h as fractions of the image).
        """
        padding = size_padding(sizes, pixels.shape[-2], pixels.shape[-1])
        heads = self.detect(self.normalize(pixels).masked_fill(padding[:, None], 0.0), padding)
        return heads["pred_logits"][-1], heads["pred_boxes"][-1]

    def detect(self, images: Tensor, image_padding: Tensor | None) -> dict[str, Tensor]:
        """:meth:`forward_heads` on normalised images ``[B, 3, H, W]`` and their padding ``[B, H, W]`` if any."""
        features = self.backbone(images)[self.in_feature]
        query_position = self.query_embed.weight.expand(images.shape[0], -1, -1)
        states, _ = self.run_transformer(features, image_padding, query_position)
        return self.predict(states)

    def run_transformer(
        self,
        features: Tensor,
        image_padding: Tensor | None,
        query_position: Tensor,
        query_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: backbone features ``[B, D, h, w]``.
            image_padding: bool ``[B, H, W]`` of the images, True on padding, or None without padding.
            query_position: object queries ``[B, N, C]``.
            query_mask: bool ``[N, N]``, True where self-attention is forbidden, or None.

        Returns:
            decoder states ``[L, B, N, C]``, encoder memory ``[B, C, h, w]``.
        """
        feature_padding = resize_padding(image_padding, features.shape[-2:])
        return self.attend(self.input_proj(features), feature_padding, query_position, query_mask)

    def attend(
        self,
        projected: Tensor,
        feature_padding: Tensor | None,
        query_position: Tensor,
        query_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`run_transformer` on projected features ``[B, C, h, w]`` and their padding ``[B, h, w]``."""
        positions_of = feature_padding
        if positions_of is None:  # the same for all images
            positions_of = torch.zeros(1, *projected.shape[-2:], dtype=torch.bool, device=projected.device)
        return self.transformer(
            projected,
            position=self.position_encoding(positions_of),
            query_position=query_position,
            padding_mask=feature_padding,
            query_mask=query_mask,
        )

    def predict(self, states: Tensor) -> dict[str, Tensor]:
        """Class and box heads, in float32, on the decoder states ``[L, B, N, C]``."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            return {
                "pred_logits": self.class_embed(states),
                "pred_boxes": self.bbox_embed(states).sigmoid(),
            }

    def prepare_targets(self, batched_inputs: list[dict], heads: dict[str, Tensor]) -> BatchTargets:
        return BatchTargets.from_instances([x["instances"] for x in batched_inputs], self.device)

    def inference(
        self, heads: dict[str, Tensor], images: ImageList, batched_inputs: list[dict]
    ) -> list[dict]:
        return [
            {"instances": instances}
            for instances in detector_postprocess(
                heads["pred_logits"][-1], heads["pred_boxes"][-1], output_sizes(batched_inputs, images)
            )
        ]


def padding_mask(images: ImageList) -> Tensor | None:
    """bool ``[B, H, W]``, True on the padding of a batch, or None if there is none; one transfer from the host."""
    if all(tuple(size) == images.tensor.shape[-2:] for size in images.image_sizes):
        return None
    sizes = torch.tensor(images.image_sizes).to(images.tensor.device, non_blocking=True)
    return size_padding(sizes, images.tensor.shape[-2], images.tensor.shape[-1])


def padded_share(images: ImageList) -> float:
    """Share of the pixels of a batch that are padding, in [0, 1): work that nothing comes from."""
    batch_size, _, height, width = images.tensor.shape
    return 1 - sum(h * w for h, w in images.image_sizes) / (batch_size * height * width)


def size_padding(sizes: Tensor, height: int, width: int) -> Tensor:
    """bool ``[B, height, width]``, True beyond the ``sizes`` [B, 2] (height, width) of the images."""
    rows = torch.arange(height, device=sizes.device)
    columns = torch.arange(width, device=sizes.device)
    return (rows[None, :, None] >= sizes[:, 0, None, None]) | (
        columns[None, None, :] >= sizes[:, 1, None, None]
    )


def resize_padding(padding: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """bool ``[B, H, W]`` -> ``[B, *size]`` by nearest neighbour."""
    if padding is None:
        return None
    return F.interpolate(padding[:, None].float(), size=size)[:, 0].bool()


def output_sizes(batched_inputs: list[dict], images: ImageList) -> list[tuple[int, int]]:
    """(height, width) that predictions are scaled to: the original image's, or the input's if unknown."""
    return [
        (x.get("height", size[0]), x.get("width", size[1]))
        for x, size in zip(batched_inputs, images.image_sizes)
    ]
