"""Small models and samples that the tests share: seconds on a CPU, no data set, no pre-trained weights."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from updetr_d2 import add_updetr_config
from updetr_d2.cli import train
from updetr_d2.data.dataset_mappers.panoptic import PanopticDETRDatasetMapper

TOOLS = Path(__file__).resolve().parent.parent / "tools"


class PatchifyBackbone(Backbone):
    """Two convolutions without overlap, "res4" of stride 16 and "res5" of stride 32.

    Unlike a real CNN it lets nothing of the padding into the features of the image, so tests of padding can
    compare exactly.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 12, kernel_size=16, stride=16)
        self.conv2 = nn.Conv2d(12, 16, kernel_size=2, stride=2)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)  # features of unit size, which differ between images

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        res4 = self.conv1(F.pad(images, (0, -width % 32, 0, -height % 32))).relu()
        return {"res4": res4, "res5": self.conv2(res4).relu()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res4": ShapeSpec(channels=12, stride=16), "res5": ShapeSpec(channels=16, stride=32)}


@BACKBONE_REGISTRY.register()
def build_patchify_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PatchifyBackbone:
    return PatchifyBackbone(input_shape.channels)


def tiny_cfg(meta_architecture: str, *options) -> CfgNode:
    """Config of a 2 + 2 layer, 32 channel model on the patchify backbone: 20 queries, 5 patches, no dropout.

    Args:
        meta_architecture: "DETR" or "UPDETR", ...
        options: alternating keys and values, as on the command line of ``tools/train_net.py``.
    """
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.NAME = "build_patchify_backbone"
    cfg.MODEL.DETR.NUM_CLASSES = 2 if meta_architecture == "UPDETR" else 4
    cfg.MODEL.DETR.NUM_QUERIES = 20
    cfg.MODEL.DETR.HIDDEN_DIM = 32
    cfg.MODEL.DETR.NHEADS = 4
    cfg.MODEL.DETR.ENC_LAYERS = 2
    cfg.MODEL.DETR.DEC_LAYERS = 2
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 48
    cfg.MODEL.DETR.DROPOUT = 0.0
    cfg.MODEL.UPDETR.NUM_PATCHES = 5
    cfg.merge_from_list(list(options))
    return cfg


# Options that put Detectron2's ResNet-18 in the place of the patchify backbone.
RESNET18 = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
    *("MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.OUT_FEATURES", ["res5"]),
)

# What a small PanopticDETR of two things and two stuff classes needs beside it.
PANOPTIC_RESNET18 = (
    *(*RESNET18[:-1], ["res2", "res3", "res4", "res5"]),
    *("MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8),
    *("MODEL.MASK_HEAD.NUM_THING_CLASSES", 2),
)

# The first self-attention of the decoder sees only zeros, so these have no gradient in a fresh model.
WITHOUT_GRADIENT_AT_START = (
    "transformer.decoder.layers.0.self_attn.",
    "transformer.decoder.layers.0.norm1.weight",
)


def tiny_model(meta_architecture: str, *options) -> nn.Module:
    """The model of :func:`tiny_cfg` with random weights, in training mode."""
    return build_model(tiny_cfg(meta_architecture, *options))


def save_tiny_model(folder: Path, meta_architecture: str, *options) -> nn.Module:
    """The model of :func:`tiny_model` in evaluation mode; its config and weights are in ``folder``.

    Args:
        folder: gets ``config.yaml`` and ``model.pth``.
        meta_architecture, options: as for :func:`tiny_cfg`.
    """
    torch.manual_seed(0)
    model = tiny_model(meta_architecture, *options)
    torch.save({"model": model.state_dict(), "meta_architecture": meta_architecture}, folder / "model.pth")
    (folder / "config.yaml").write_text(tiny_cfg(meta_architecture, *options).dump())
    return model.eval()


def randomize_frozen_norms(module: nn.Module) -> nn.Module:
    """Random statistics for Detectron2's frozen BatchNorms, so that a norm that is not applied is noticed."""
    for each in module.modules():
        if isinstance(each, FrozenBatchNorm2d):
            each.weight.normal_()
            each.bias.normal_()
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
    return module


def random_instances(height: int, width: int, num_targets: int, *, num_classes: int = 4) -> Instances:
    """Targets in Detectron2's format: boxes of 2 px at least inside the image, classes in [0, num_classes)."""
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    corners = torch.rand(num_targets, 2, 2) * (size[:2] - 2)
    corners = corners.sort(dim=1).values
    corners[:, 1] += 2
    return Instances(
        (height, width),
        gt_boxes=Boxes(corners.flatten(1)),
        gt_classes=torch.randint(num_classes, (num_targets,)),
    )


def random_sample(
    height: int = 64, width: int = 96, *, num_targets: int = 3, num_patches: int | None = None
) -> dict:
    """A sample of noise as a mapper makes it, from torch's global generator.

    Args:
        height, width: of the image in px.
        num_targets: boxes of classes 0–3; without effect if ``num_patches`` is given.
        num_patches: adds ``patches`` of 64×64 px and has one target of class 1 for each.
    """
    sample = {
        "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
        "height": height,
        "width": width,
        "instances": random_instances(height, width, num_targets if num_patches is None else num_patches),
    }
    if num_patches is not None:
        sample["patches"] = torch.randint(256, (num_patches, 3, 64, 64), dtype=torch.uint8)
        sample["instances"].gt_classes.fill_(1)
    return sample


# A small model on small images in the place of the recipe's.
SMALL_DETR = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18),
    *(
        "MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER",
        False,
        "MODEL.DETR.HIDDEN_DIM",
        32,
        "MODEL.DETR.NHEADS",
        4,
    ),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.DIM_FEEDFORWARD", 64),
    *("INPUT.MIN_SIZE_TRAIN", (64, 80), "INPUT.MIN_SIZE_TEST", 64, "INPUT.DETR_CROP.RESIZE_SIDES", (64, 96)),
    *("INPUT.DETR_CROP.CROP_SIDE_RANGE", (48, 96), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
)


# The same for pre-training from the command line.
SMALL_PRETRAINING = (
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.WEIGHTS", ""),
    *("MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.DETR.HIDDEN_DIM", "32"),
    *("MODEL.DETR.ENC_LAYERS", "1"),
    *("MODEL.DETR.DEC_LAYERS", "2"),
    *("MODEL.DETR.DIM_FEEDFORWARD", "32"),
    *("MODEL.DETR.NUM_QUERIES", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 80)"),
    *("INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.QUERY_PATCH.SIZE", "32"),
    *("SOLVER.IMS_PER_BATCH", "4"),
    *("SOLVER.MAX_ITER", "4"),
    *("DATALOADER.NUM_WORKERS", "0"),
    *("TEST.EVAL_PERIOD", "4"),
    *("SEED", "7"),
)


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG files of smooth noise, every third one tall."""
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (96, 64) if i % 3 else (64, 96)
        noise = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")


def run_train_net(config, output, *options, flags=()):
    """Run the main function of tools/train_net.py in this process.

    Returns:
        what it wrote into metrics.json, later iterations over earlier ones; with --eval-only what it returns.
    """
    command = ["--config-file", str(TOOLS.parent / "configs" / config), *flags, *map(str, options)]
    args = default_argument_parser().parse_args([*command, "OUTPUT_DIR", str(output)])
    results = train.main(args)
    if args.eval_only:
        return results
    return {k: v for line in (output / "metrics.json").open() for k, v in json.loads(line).items()}


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Colors of COCO's panoptic PNGs."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def true_panoptic_output(dataset_dict: dict, num_things: int) -> dict:
    """What a perfect model says of an image."""
    mapper = PanopticDETRDatasetMapper(is_train=True, augmentations=[])
    labels = mapper(dataset_dict)["instances"]
    segment_map = torch.zeros(labels.image_size, dtype=torch.int32)
    segments_info = []
    for i, (mask, category) in enumerate(zip(labels.gt_masks, labels.gt_classes.tolist()), start=1):
        segment_map[mask] = i
        segments_info.append({"id": i, "category_id": category, "isthing": category < num_things})
    instances = Instances(
        labels.image_size,
        pred_boxes=Boxes(labels.gt_boxes.tensor),
        scores=torch.ones(len(labels)),
        pred_classes=labels.gt_classes,
        pred_masks=labels.gt_masks.tensor,
    )
    return {"instances": instances, "panoptic_seg": (segment_map, segments_info)}
