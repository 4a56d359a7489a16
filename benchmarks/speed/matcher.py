"""``benchmark.py matcher``: the bipartite matching of all decoder layers, by batch size."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from detectron2.config import CfgNode

from benchmarks.speed import reference_matching, synthetic
from benchmarks.speed.timing import Measurement, measure_in_turn
from updetr_d2.modeling.matcher import HungarianMatcher, Matches, build_matcher


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32], help="images (default: 8 32)")
    parser.add_argument("--targets", type=int, default=10, help="targets of each image (default: 10)")


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    return [_measure(args, cfg, batch_size) for batch_size in args.batch_sizes]


def _measure(args: Namespace, cfg: CfgNode, batch_size: int) -> Measurement:
    device = torch.device(cfg.MODEL.DEVICE)
    matcher = build_matcher(cfg)
    heads = synthetic.random_heads(cfg, batch_size=batch_size, device=device)
    targets = synthetic.random_targets(cfg, batch_size=batch_size, num_targets=args.targets, device=device)
    inputs = (heads["pred_logits"], heads["pred_boxes"], targets)
    functions: dict[str, Callable[[], object]] = {"ours": lambda: matcher(*inputs)}
    if args.compare:
        if not isinstance(matcher, HungarianMatcher):
            raise ValueError(f"There is no reference for {type(matcher).__name__}: leave out --compare.")
        check_same_pairs(matcher(*inputs), reference_matching.match(matcher, *inputs))
        functions["reference"] = lambda: reference_matching.match(matcher, *inputs)
    seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
    return Measurement(
        f"matcher, {len(heads['pred_logits'])} layers, batch {batch_size}, {args.targets} targets",
        seconds["ours"],
        seconds.get("reference", []),
        images=batch_size,
    )


def check_same_pairs(ours: Matches, reference: list[reference_matching.Pairs]) -> None:
    """Make sure that both match alike.

    Raises:
        AssertionError: if they do not.
    """
    ours_pairs = set(zip(*(x.tolist() for x in (ours.layer, ours.image, ours.query, ours.target))))
    reference_pairs = {
        (layer, image, query, target)
        for layer, images in enumerate(reference)
        for image, (queries, targets) in enumerate(images)
        for query, target in zip(queries.tolist(), targets.tolist())
    }
    assert ours_pairs == reference_pairs, "our matcher and the reference match differently"
