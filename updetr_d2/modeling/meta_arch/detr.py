"""DETR (Carion et al., ECCV 2020, arXiv 2005.12872) as a Detectron2 meta-architecture, on any transformer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2.modeling.backbone import build_backbone
from updetr_d2.modeling.criterion import build_criterion
from updetr_d2.modeling.outputs import Outputs
from updetr_d2.modeling.postprocessing import detector_postprocess
from updetr_d2.modeling.targets import BatchTargets, pad_boxes
from updetr_d2.modeling.transformers.base import (
    Decoded,
    DetectionTransformer,
    Pyramid,
    Queries,
    build_transformer,
)
from updetr_d2.modeling.transformers.denoising import Denoising

__all__ = ["DETR"]


@META_ARCH_REGISTRY.register()
class DETR(nn.Module):
    """End-to-end object detection with a transformer: backbone, levels, queries, transformer, heads.

    What a task adds: :meth:`make_queries`, :meth:`extra_outputs`, :meth:`add_targets`, :meth:`inference`.

    Args:
        backbone: any Detectron2 backbone.
        in_feature: name of the backbone feature that encodes patches and that a transformer of one level sees.
        transformer: the encoder-decoder.
        num_queries: object queries N.
        num_classes: foreground classes K.
        class_loss: "softmax" (K + 1 logits) or "focal" (K logits).
        denoising: noised objects beside the queries in training; None for none.
        detections_per_image: best detections that inference gives with "focal"; "softmax" gives one a query.
        nms_threshold: of boxes of one class with a larger IoU only the best is given out; 1 gives all.
        pad_multiple: in training, the sides of padded batches are multiples of it (px).
        criterion: module (Outputs, BatchTargets) -> (losses, metrics); None for inference only.
        pixel_mean, pixel_std: per channel, in the order and range of the input images.

    Raises:
        ValueError: if the backbone lacks a feature.
    """

    # Name in ``updetr_d2.tasks.TASKS``: decides on data, evaluation and checks.
    task: str = "detection"
    # Modules that only pre-training has use for: a checkpoint does not give them to models that have others.
    pretraining_only: tuple[str, ...] = ()
    # Those of them that mean the same in this model, which therefore takes them.
    taken_from_pretraining: tuple[str, ...] = ()

    # Losses of samples with ``update_counts`` (BatchTargets) are shares of those of the whole update.
    losses_add_up: bool = True

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str = "res5",
        transformer: DetectionTransformer,
        num_queries: int = 100,
        num_classes: int,
        class_loss: str = "softmax",
        denoising: Denoising | None = None,
        detections_per_image: int = 100,
        nms_threshold: float = 1.0,
        pad_multiple: int = 1,
        criterion: nn.Module | None = None,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        features = backbone.output_shape()
        self.in_features = transformer.in_features or (in_feature,)
        for name in (in_feature, *self.in_features):
            if name not in features:
                argument = "in_feature" if name == in_feature else "in_features"
                raise ValueError(
                    f"`{argument}` is '{name}', but the backbone returns only {sorted(features)}; add it to the "
                    "backbone's OUT_FEATURES."
                )
        self.backbone = backbone
        self.in_feature = in_feature
        self.transformer = transformer
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.class_loss = class_loss
        self.detections_per_image = detections_per_image
        self.nms_threshold = nms_threshold
        self.pad_multiple = pad_multiple
        self.criterion = criterion
        self.feature_dim = features[in_feature].channels
        self.input_proj = transformer.build_input_proj([features[name].channels for name in self.in_features])
        self.query_embed = transformer.build_query_embed(num_queries)
        num_logits = num_classes + (class_loss == "softmax")
        self.class_embed, self.bbox_embed = transformer.build_heads(num_logits)
        self.denoising = denoising
        # One label more than there are classes, as in DINO's checkpoints.
        self.label_enc = None if denoising is None else nn.Embedding(num_classes + 1, transformer.hidden_dim)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Scalars of the last training step that are logged, not trained.
        self.training_metrics: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        detr = cfg.MODEL.DETR
        return {
            "backbone": build_backbone(cfg),
            "in_feature": detr.IN_FEATURE,
            "transformer": build_transformer(cfg),
            "num_queries": detr.NUM_QUERIES,
            "num_classes": detr.NUM_CLASSES,
            "class_loss": cfg.MODEL.CRITERION.CLASS_LOSS,
            "denoising": Denoising.from_config(cfg),
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "nms_threshold": detr.NMS_THRESH,
            "pad_multiple": detr.PAD_MULTIPLE,
            "criterion": build_criterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def fails_together(self) -> bool:
        """Whether a ``FloatingPointError`` of a training pass comes in all processes or in none."""
        return getattr(self.criterion, "fails_together", False)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: samples in Detectron2's format: ``image`` uint8 or float [3, H, W] in 0–255, in
                training ``instances`` (``gt_boxes`` XYXY in the pixels of ``image``, ``gt_classes``), for
                inference optionally ``height`` and ``width`` of the original image.

        Returns:
            in training a dict of weighted scalar losses; else a list of ``{"instances": Instances}`` with
            ``pred_boxes`` (XYXY, original pixels), ``scores`` in [0, 1], ``pred_classes``: of all N queries, or
            with focal loss the best ``detections_per_image`` pairs of query and class.
        """
        images = self.preprocess_images(batched_inputs)
        targets = self.box_targets(batched_inputs) if self.training else None
        outputs = self.compute_outputs(images, batched_inputs, targets)
        if targets is None:
            return self.inference(outputs, images, batched_inputs)
        if self.criterion is None:
            raise ValueError(
                "This model was built without a criterion, for inference alone: call eval() first."
            )
        self.add_targets(targets, batched_inputs, outputs)
        losses, metrics = self.criterion(outputs, targets)
        padding = torch.full((), padded_share(images), device=self.device)
        self.training_metrics = {**metrics, "padded_share": padding}
        return losses

    def forward_heads(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Raw outputs of all heads.

        Args:
            batched_inputs: as for :meth:`forward`.

        Returns:
            ``pred_logits`` [L,B,N,K+1] (softmax) or [L,B,N,K] (focal) and ``pred_boxes`` [L,B,N,4] (cx, cy, w, h
            as fractions of the image), and what a task adds, see :meth:`Outputs.as_dict`.
        """
        return self.compute_outputs(self.preprocess_images(batched_inputs), batched_inputs).as_dict()

    def preprocess_images(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize the images and pad them to one size, without a divisor unless asked for: DETR needs none."""
        images = [self.normalize(x["image"].to(self.device, non_blocking=True)) for x in batched_inputs]
        multiple = math.lcm(self.backbone.size_divisibility or 1, self.pad_multiple if self.training else 1)
        return ImageList.from_tensors(images, multiple)

    def normalize(self, pixels: Tensor) -> Tensor:
        """``[..., 3, H, W]`` in 0–255 -> float32 with the statistics of the CNN's training."""
        return (pixels.float() - self.pixel_mean) / self.pixel_std

    def forward_tensors(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The detector from tensors to tensors, for export (``updetr export``).

        Args:
            pixels: float ``[B, 3, H, W]`` in 0–255, channels in ``INPUT.FORMAT``, each image in the upper left
                corner. H and W are multiples of ``backbone.size_divisibility``; the padding may hold anything.
            sizes: integers ``[B, 2]``, height and width of each image.

        Returns:
            logits ``[B, N, K+1]`` (``[B, N, K]`` with focal loss) and boxes ``[B, N, 4]`` (cx, cy, w, h as
            fractions of the image).
        """
        padding = size_padding(sizes, pixels.shape[-2], pixels.shape[-1])
        outputs = self.detect(self.normalize(pixels).masked_fill(padding[:, None], 0.0), padding)
        return outputs.logits[-1], outputs.boxes[-1]

    def compute_outputs(
        self, images: ImageList, batched_inputs: list[dict], targets: BatchTargets | None = None
    ) -> Outputs:
        """:meth:`detect` on a batch of samples."""
        return self.detect(
            images.tensor, padding_mask(images), batched_inputs, targets, image_sizes=images.image_sizes
        )

    def detect(
        self,
        images: Tensor,
        image_padding: Tensor | None,
        batched_inputs: Sequence[dict] = (),
        targets: BatchTargets | None = None,
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Outputs:
        """From normalized images to the outputs of all heads.

        Args:
            images: ``[B, 3, H, W]``.
            image_padding: bool ``[B, H, W]``, True on padding, or None without padding.
            batched_inputs: the samples, for tasks whose queries depend on them.
            targets: in training, for denoising.
            image_sizes: height and width of each image, for backbones that ask for them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_detector):
            features = self.extract_features(images, image_sizes)
            levels = self.transformer.project(self.input_proj, [features[name] for name in self.in_features])
            pyramid = Pyramid(
                features=features,
                levels=levels,
                paddings=[resize_padding(image_padding, level.shape[-2:]) for level in levels],
                coarsest=len(self.in_features) - 1,
                image_size=(images.shape[-2], images.shape[-1]),
                image_padding=image_padding,
            )
            queries = self.make_queries(batched_inputs)
            noised = None
            if targets is not None and self.denoising is not None and self.label_enc is not None:
                noised = self.denoising(targets, self.label_enc)
                queries.noised = None if noised is None else noised.queries
            decoded = self.transformer.decode(pyramid, queries, self.class_embed, self.bbox_embed)
        outputs = Outputs(decoded.logits, decoded.boxes)
        if decoded.proposals is not None:
            outputs.auxiliary["enc"] = decoded.proposals
        if noised is not None:
            if decoded.noised is None:
                raise ValueError(
                    f"{type(self.transformer).__name__} does not decode noised queries: set "
                    "MODEL.DENOISING.NUM_QUERIES to 0."
                )
            outputs.auxiliary["dn"] = noised.outputs(*decoded.noised)
        elif targets is not None and self.label_enc is not None:
            # Without objects nothing is denoised, but DDP waits for a gradient of the labels' embeddings.
            outputs.logits = outputs.logits + 0 * self.label_enc.weight.sum()
        self.extra_outputs(outputs, decoded, queries, pyramid)
        return outputs

    @property
    def trains_detector(self) -> bool:
        """Whether anything before the extra outputs may have a gradient."""
        return True

    def extract_features(
        self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """Backbone features of normalized images ``[B, 3, H, W]``, padded from ``image_sizes`` (height, width)."""
        if getattr(self.backbone, "takes_image_sizes", False):
            return self.backbone(images, image_sizes)
        return self.backbone(images)

    def make_queries(self, batched_inputs: Sequence[dict]) -> Queries:
        """The object queries of a batch."""
        embed = None if self.query_embed is None else self.query_embed.weight
        return Queries(embed, self.num_queries)

    def extra_outputs(self, outputs: Outputs, decoded: Decoded, queries: Queries, pyramid: Pyramid) -> None:
        """Add to ``outputs`` what a task predicts beside classes and boxes."""

    def box_targets(self, batched_inputs: list[dict]) -> BatchTargets:
        """Boxes and classes to learn, and where nobody knows (``uncertain_boxes``, of a mean teacher)."""
        instances = [x["instances"] for x in batched_inputs]
        targets = BatchTargets.from_instances(instances, self.device)
        targets.update_counts = batched_inputs[0].get("update_counts")
        if all("uncertain_boxes" in x for x in batched_inputs):
            boxes = [x["uncertain_boxes"] for x in batched_inputs]
            targets.uncertain = pad_boxes(boxes, [each.image_size for each in instances], self.device)
            targets.drop_iou = max(x["drop_iou"] for x in batched_inputs)
        return targets

    def prepare_targets(self, batched_inputs: list[dict], outputs: Outputs) -> BatchTargets:
        """Everything that there is to learn about ``outputs`` of a batch."""
        targets = self.box_targets(batched_inputs)
        self.add_targets(targets, batched_inputs, outputs)
        return targets

    def add_targets(self, targets: BatchTargets, batched_inputs: list[dict], outputs: Outputs) -> None:
        """Add to ``targets`` what a task learns beside classes and boxes."""

    def inference(self, outputs: Outputs, images: ImageList, batched_inputs: list[dict]) -> list[dict]:
        """Predictions in Detectron2's format, see :meth:`forward`."""
        instances = detector_postprocess(
            outputs.logits[-1],
            outputs.boxes[-1],
            output_sizes(batched_inputs, images),
            class_loss=self.class_loss,
            max_detections=self.detections_per_image,
            nms_threshold=self.nms_threshold,
        )
        return [{"instances": each} for each in instances]


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


def resize_padding(padding: Tensor | None, size: tuple[int, ...]) -> Tensor | None:
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
