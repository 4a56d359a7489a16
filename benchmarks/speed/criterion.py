"""``benchmark.py criterion``: matching and losses of all decoder layers with their gradient, by batch size."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from benchmarks.speed import matcher, synthetic
from benchmarks.speed.reference_model import PlainCriterion
from benchmarks.speed.timing import Measurement, measure_in_turn
from updetr_d2.modeling.criterion import build_criterion
from updetr_d2.modeling.outputs import Outputs

# Relative difference of losses that rounding explains.
TOLERANCE = 1e-4


def add_arguments(parser: ArgumentParser) -> None:
    matcher.add_arguments(parser)


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    return [_measure(args, cfg, batch_size) for batch_size in args.batch_sizes]


def _measure(args: Namespace, cfg: CfgNode, batch_size: int) -> Measurement:
    device = torch.device(cfg.MODEL.DEVICE)
    criterion = build_criterion(cfg).to(device)
    plain = PlainCriterion(criterion)
    heads = synthetic.random_heads(cfg, batch_size=batch_size, device=device)
    targets = synthetic.random_targets(cfg, batch_size=batch_size, num_targets=args.targets, device=device)
    functions = {"ours": forward_and_backward(lambda x: criterion(outputs_of(x), targets)[0], heads)}
    if args.compare:
        functions["reference"] = forward_and_backward(lambda x: plain(x, targets), heads)
        assert_same_losses(criterion(outputs_of(heads), targets)[0], plain(heads, targets))
    seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
    return Measurement(
        f"criterion, {len(heads['pred_logits'])} layers, batch {batch_size}, {args.targets} targets",
        seconds["ours"],
        seconds.get("reference", []),
        images=batch_size,
    )


def outputs_of(heads: dict[str, Tensor]) -> Outputs:
    """Heads by name as a model gives them."""
    return Outputs(heads["pred_logits"], heads["pred_boxes"])


def forward_and_backward(losses: Callable, heads: dict[str, Tensor]) -> Callable[[], None]:
    """A function that computes losses of the heads' outputs and the gradient with respect to these."""
    inputs = {name: nn.Parameter(value) for name, value in heads.items()}

    def compute() -> None:
        for value in inputs.values():
            value.grad = None
        sum(losses(inputs).values()).backward()

    return compute


def assert_same_losses(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Make sure that the reference computes what we do.

    Raises:
        AssertionError: naming the losses that differ.
    """
    assert ours.keys() == theirs.keys(), f"losses differ: {ours.keys() ^ theirs.keys()}"
    different = {
        name: (float(ours[name]), float(theirs[name]))
        for name in ours
        if not torch.isclose(ours[name], theirs[name], rtol=TOLERANCE, atol=1e-6)
    }
    assert not different, f"our losses and the reference's differ: {different}"
