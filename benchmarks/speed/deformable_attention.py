"""``benchmark.py deformable-attention``: sampling of four levels by the tokens themselves, and by object queries.

The reference is ``grid_sample`` level by level, as in the implementations without a compiled op. Forward without
gradients, then forward and backward, with the memory that each takes.
"""

import functools
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import Tensor

from benchmarks.speed.timing import Measurement, measure_in_turn, peak_memory
from updetr_d2.modeling.transformers.deformable_attention import multi_scale_deformable_attention

STRIDES = (8, 16, 32, 64)
NUM_POINTS = 4

grid_sample_attention = functools.partial(multi_scale_deformable_attention, use_grid_sample=True)


def add_arguments(parser: ArgumentParser) -> None:
    sizes = [64, 128, 320, 640]
    parser.add_argument(
        "--image-sizes", type=int, nargs="+", default=sizes, help="height and width (default: 64 128 320 640)"
    )
    parser.add_argument("--queries", type=int, default=300, help="object queries (default: 300)")


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    device = torch.device(cfg.MODEL.DEVICE)
    rows = []
    for size in args.image_sizes:
        shapes = [(math.ceil(size / stride),) * 2 for stride in STRIDES]
        num_tokens = sum(height * width for height, width in shapes)
        for name, num_queries in (("tokens", num_tokens), ("object queries", args.queries)):
            inputs = _random_inputs(cfg, shapes, num_queries, device)
            rows += _measure(args, f"{size} px, {num_queries} {name}", shapes, inputs, device)
    return rows


def _random_inputs(
    cfg: CfgNode, shapes: list[tuple[int, int]], num_queries: int, device: torch.device
) -> list[Tensor]:
    """Values, positions around random references (standard deviation 3 px of each level) and weights."""
    num_heads = cfg.MODEL.DETR.NHEADS
    num_tokens = sum(height * width for height, width in shapes)
    value = torch.randn(1, num_tokens, num_heads, cfg.MODEL.DETR.HIDDEN_DIM // num_heads, device=device)
    points = (1, num_queries, num_heads, len(shapes), NUM_POINTS)
    sizes = torch.tensor([(width, height) for height, width in shapes], device=device)
    offsets = 3 * torch.randn(*points, 2, device=device) / sizes[:, None]
    reference = torch.rand(1, num_queries, 1, 1, 1, 2, device=device)
    weights = torch.randn(points, device=device).flatten(3).softmax(dim=-1).view(points)
    return [x.requires_grad_() for x in (value, reference + offsets, weights)]


def _measure(
    args: Namespace,
    name: str,
    shapes: list[tuple[int, int]],
    inputs: list[Tensor],
    device: torch.device,
) -> list[Measurement]:
    attentions: dict[str, Callable] = {"ours": multi_scale_deformable_attention}
    if args.compare:
        attentions["reference"] = grid_sample_attention
        assert_same_results(shapes, inputs)
    rows = []
    for part, make in (("forward", _forward), ("forward and backward", _forward_and_backward)):
        functions = {key: make(attention, shapes, inputs) for key, attention in attentions.items()}
        seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
        peaks = {key: peak_memory(function, device) for key, function in functions.items()}
        rows.append(
            Measurement(
                f"{name}, {part}",
                seconds["ours"],
                seconds.get("reference", []),
                peak_mib=peaks["ours"],
                reference_peak_mib=peaks.get("reference"),
            )
        )
    return rows


def _forward(
    attention: Callable, shapes: list[tuple[int, int]], inputs: list[Tensor]
) -> Callable[[], Tensor]:
    value, locations, weights = inputs

    @torch.no_grad()
    def compute() -> Tensor:
        return attention(value, shapes, locations, weights)

    return compute


def _forward_and_backward(
    attention: Callable, shapes: list[tuple[int, int]], inputs: list[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    value, locations, weights = inputs

    def compute() -> tuple[Tensor, ...]:
        attended = attention(value, shapes, locations, weights)
        return attended, *torch.autograd.grad(attended.square().sum(), inputs)

    return compute


def assert_same_results(shapes: list[tuple[int, int]], inputs: list[Tensor]) -> None:
    """Make sure that output and gradients are those of the reference.

    Raises:
        AssertionError: if they are not.
    """
    ours = _forward_and_backward(multi_scale_deformable_attention, shapes, inputs)()
    reference = _forward_and_backward(grid_sample_attention, shapes, inputs)()
    for x, y in zip(ours, reference):
        scale = y.abs().max()
        assert torch.allclose(x / scale, y / scale, atol=1e-4), "the reference's attention differs from ours"
