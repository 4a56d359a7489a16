"""Write a trained DETR as an ONNX file that takes any batch and any image size.

    updetr export --config-file output/run/config.yaml --output detr.onnx \\
        MODEL.WEIGHTS output/run/model_final.pth

Inputs:
    images  float32 [batch, 3, height, width], 0-255, channels in INPUT.FORMAT, not normalized; smaller images
            of a batch stand in the upper left corner, what is beside them does not matter
    sizes   int64 [batch, 2], height and width of each image without padding
Outputs:
    logits  float32. With DETR's transformer [batch, queries, classes + 1]: softmax over the last axis, whose
            last entry is "no object". Of Deformable DETR and DINO [batch, queries, classes]: sigmoid, and the
            best of all queries and classes together are the detections
    boxes   float32 [batch, queries, 4]; center x, center y, width, height as fractions of the image

Resize as in training first (INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST). The file's metadata hold the channel
order, those sizes, the class names where known, "activation" (softmax or sigmoid), and the number that height and
width must be multiples of. Needs torch >= 2.6, onnx and onnxscript. Of a PanopticDETR the boxes can be exported
(MODEL.META_ARCHITECTURE DETR), a UPDETR not at all. A DINO takes about two minutes.
"""

import argparse
import copy
import json
import logging
import os
import sys
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from torch import Tensor, nn

from updetr_d2.inference.predictor import load_trained_model, setup_inference_config
from updetr_d2.modeling.meta_arch import DETR
from updetr_d2.modeling.transformers.deformable_attention import MultiScaleDeformableAttention
from updetr_d2.tasks.findings import PredictedClasses

Pair = tuple[int, int]

# Size (px) of the example that the graph is recorded with; all others work, too.
EXAMPLE_SIZE = (128, 160)


class TensorDETR(nn.Module):
    """:meth:`DETR.forward_tensors` as the forward pass of a module."""

    def __init__(self, model: DETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.forward_tensors(images, sizes)


def exportable(model: DETR) -> DETR:
    """A copy on the CPU in evaluation mode that computes the same in operators and terms that the exporter knows.

    Args:
        model: any, whose images have sides that are multiples of ``backbone.size_divisibility``.
    """
    model = copy.deepcopy(model).cpu().eval()
    for module in list(model.modules()):
        if isinstance(module, MultiScaleDeformableAttention):
            module.use_grid_sample = True
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":  # of timm, an extra
                setattr(module, name, _with_fixed_padding(child))
    return model


def _with_fixed_padding(conv: nn.Conv2d) -> nn.Sequential:
    """TensorFlow's "same" padding of sides that the stride divides; for other sizes it would be another one.

    Worked out for any size it makes the terms of all sizes behind it so long that tracing takes many minutes.
    """
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast(Pair, conv.kernel_size),
        stride=cast(Pair, conv.stride),
        dilation=cast(Pair, conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    sides = zip(conv.kernel_size, conv.stride, conv.dilation)
    totals = [max((size - 1) * dilation + 1 - stride, 0) for size, stride, dilation in sides]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)


def export_onnx(model: nn.Module, path: str, *, metadata: dict[str, str] | None = None) -> None:
    """Write ``model`` as ONNX, see the head of this file.

    Args:
        model: a plain DETR, on any transformer and device; not changed.
        path: file to write.
        metadata: written into the file as they are.

    Raises:
        ValueError: for a model of another kind.
    """
    if not isinstance(model, DETR) or type(model) is not DETR:
        raise ValueError(
            f"Only MODEL.META_ARCHITECTURE DETR can be exported, not {type(model).__name__}; of a PanopticDETR "
            "the boxes can, with MODEL.META_ARCHITECTURE DETR."
        )
    if getattr(model.backbone, "takes_image_sizes", False):
        raise ValueError(
            f"{type(model.backbone).__name__} (MODEL.BACKBONE.NAME) takes the images of a batch one by one, which "
            "ONNX cannot hold: models with a CNN can be exported."
        )
    if getattr(model.transformer, "proposal_nms_threshold", 1.0) < 1.0:
        raise ValueError(
            "The proposals of this model are thinned out by NMS, which the exporter cannot follow: add "
            "MODEL.DEFORMABLE.PROPOSAL_NMS_THRESH 1.0, which exports it without (docs/GETTING_STARTED.md#export "
            "says what that did to AP)."
        )
    model = exportable(model)
    divisor = max(model.backbone.size_divisibility, 1)
    wrapper = TensorDETR(model).eval()
    height, width = (side - side % -divisor for side in EXAMPLE_SIZE)
    # Different sizes in the example, so that nothing of it is taken for a constant.
    examples = (
        torch.zeros(2, 3, height, width),
        torch.tensor([[height, width // 2], [height // 2, width]]),
    )
    dynamic = torch.export.Dim.DYNAMIC
    # As multiples, so that the sizes of all feature maps are simple terms: else tracing takes many minutes.
    sides = [
        divisor * torch.export.Dim(name, min=1) if divisor > 1 else dynamic for name in ("rows", "columns")
    ]
    with torch.no_grad():
        program = torch.onnx.export(
            wrapper,
            examples,
            dynamo=True,
            verbose=False,
            input_names=["images", "sizes"],
            output_names=["logits", "boxes"],
            dynamic_shapes=({0: dynamic, 2: sides[0], 3: sides[1]}, {0: dynamic}),
        )
    assert program is not None  # as dynamo=True says
    program.model.metadata_props.update({"size_divisibility": str(divisor), **(metadata or {})})
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    program.save(path)


def describe(cfg: CfgNode) -> dict[str, str]:
    """What a user of the file has to know of the config."""
    classes = PredictedClasses.from_config(cfg).names
    return {
        "input_format": cfg.INPUT.FORMAT,
        "min_size_test": str(cfg.INPUT.MIN_SIZE_TEST),
        "max_size_test": str(cfg.INPUT.MAX_SIZE_TEST),
        "activation": "sigmoid" if cfg.MODEL.CRITERION.CLASS_LOSS == "focal" else "softmax",
        **({"classes": json.dumps(classes)} if classes else {}),
    }


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the trained model")
    parser.add_argument("--output", default="model.onnx", help="file to write (default: %(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config values that override the file's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_intermixed_args(argv)
    setup_logger(name="updetr_d2")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of every weight that it does not fold
    try:
        cfg = setup_inference_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
        export_onnx(load_trained_model(cfg), args.output, metadata=describe(cfg))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output}")
    return 0
