"""``benchmark.py inference``: predictions from images, post-processing included."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from detectron2.config import CfgNode

from benchmarks.speed import synthetic
from benchmarks.speed.reference_model import PlainDETR
from benchmarks.speed.timing import Measurement, measure_in_turn, peak_memory
from updetr_d2.modeling.meta_arch import DETR
from updetr_d2.modeling.postprocessing import detector_postprocess

# Difference of boxes and logits that rounding explains, relative to the largest.
TOLERANCE = 1e-4


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=1, help="images of a call (default: 1)")
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="default: 480 640"
    )


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    model = synthetic.build_random_model(cfg).eval()
    samples = synthetic.random_samples(
        cfg, batch_size=args.batch_size, size=tuple(args.image_size), num_targets=1
    )
    reference = PlainDETR(model, cfg).eval() if args.compare else None
    with torch.inference_mode():
        return [_measure(args, cfg, model, reference, samples)]


def _measure(
    args: Namespace, cfg: CfgNode, model: DETR, reference: PlainDETR | None, samples: list[dict]
) -> Measurement:
    device = torch.device(cfg.MODEL.DEVICE)
    functions: dict[str, Callable[[], object]] = {"ours": lambda: model(samples)}
    if reference is not None:
        check_same_heads(model.forward_heads(samples), reference.forward_heads(samples)[0])
        functions["reference"] = lambda: plain_inference(reference, samples)
    seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
    peaks = {name: peak_memory(function, device) for name, function in functions.items()}
    height, width = args.image_size
    return Measurement(
        f"inference, {cfg.MODEL.META_ARCHITECTURE}, batch {args.batch_size}, {height}x{width}",
        seconds["ours"],
        seconds.get("reference", []),
        images=args.batch_size,
        peak_mib=peaks["ours"],
        reference_peak_mib=peaks.get("reference"),
    )


def plain_inference(reference: PlainDETR, samples: list[dict]) -> list:
    """Heads of all layers, then the boxes of one image after the other."""
    heads, _ = reference.forward_heads(samples)
    return [
        detector_postprocess(
            heads["pred_logits"][-1, i : i + 1],
            heads["pred_boxes"][-1, i : i + 1],
            [(x["height"], x["width"])],
        )
        for i, x in enumerate(samples)
    ]


def check_same_heads(ours: dict, theirs: dict) -> None:
    """Make sure that the reference computes what our model does.

    Raises:
        AssertionError: naming the outputs that differ.
    """
    different = [
        name
        for name in theirs
        if not (ours[name] - theirs[name]).abs().max() < TOLERANCE * theirs[name].abs().max()
    ]
    assert not different, f"our outputs and the reference's differ: {different}"
