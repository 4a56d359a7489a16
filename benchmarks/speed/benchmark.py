"""Measure the speed and memory of the parts of training and inference, on random data with random weights.

    python tools/benchmark.py step --config-file configs/pretrain/updetr_r50_imagenet_60ep.yaml --compare \\
        --json step.json MODEL.DEVICE cpu

With ``--compare``, a straightforward reference (per-layer, per-image loops, nothing fused) that gives the same
numbers runs in turn with ours, so that the ratio comes from one run on one machine. docs/PERFORMANCE.md has
results. Times are medians; the spread is the distance of the quartiles as a share of the median.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg

from benchmarks.speed import (
    criterion,
    data,
    deformable_attention,
    handover,
    inference,
    mask_head,
    matcher,
    scale,
    step,
)
from benchmarks.speed.report import environment, table, write_json
from benchmarks.speed.timing import Clock
from updetr_d2 import add_updetr_config
from updetr_d2.config.files import merge_config_file
from updetr_d2.tasks import check_config

# Subcommand -> its module, with add_arguments(parser) and run(args, cfg) -> list[Measurement].
COMMANDS = {
    "data": data,
    "step": step,
    "matcher": matcher,
    "criterion": criterion,
    "mask-head": mask_head,
    "deformable-attention": deformable_attention,
    "inference": inference,
    "hand-over": handover,
    "scale": scale,
}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=str(module.__doc__).splitlines()[0], description=module.__doc__
        )
        command.add_argument("--config-file", required=True, help="as for tools/train_net.py")
        command.add_argument("--repeats", type=int, default=5, help="timed runs of everything (default: 5)")
        command.add_argument("--warmup", type=int, default=1, help="runs before them (default: 1)")
        command.add_argument("--compare", action="store_true", help="run the reference in turn with ours")
        command.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's choice)")
        command.add_argument(
            "--cpu-time",
            action="store_true",
            help="measure the processor's time instead of the wall clock's: for a CPU that others use as well",
        )
        command.add_argument("--json", type=Path, metavar="OUT", help="file to write the report to")
        module.add_arguments(command)
        command.add_argument(
            "opts", nargs=argparse.REMAINDER, default=[], help="config keys and values, as for train_net.py"
        )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Read and check the config. Without a GPU, ``MODEL.DEVICE`` is the CPU unless the options say otherwise."""
    cfg = get_cfg()
    add_updetr_config(cfg)
    merge_config_file(cfg, args.config_file)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(args.opts)
    check_config(cfg)
    cfg.freeze()
    return cfg


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = argument_parser().parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = setup(args)
    device = torch.device(cfg.MODEL.DEVICE)
    args.clock = Clock(device, cpu_time=args.cpu_time)
    measurements = COMMANDS[args.command].run(args, cfg)
    print(", ".join(f"{name} {value}" for name, value in environment(device).items()))
    print(table(measurements))
    if args.json:
        command = shlex.join(["python", "tools/benchmark.py", *arguments])
        write_json(args.json, command=command, device=device, measurements=measurements)
