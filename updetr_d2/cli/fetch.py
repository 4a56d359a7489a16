"""Get public weights by name: downloaded from their authors, checked, converted and kept in the cache.

    updetr fetch                                  lists the names
    updetr fetch swav_r50_800ep                   prints the path of the converted file
    updetr fetch detr_r50 --output weights/detr_r50.pth
    updetr fetch updetr_r50_imagenet_60ep --file up-detr-pre-training-60ep-imagenet.pth

``MODEL.WEIGHTS zoo:swav_r50_800ep`` does the same at the start of a run. An interrupted download goes on where it
was. Files that their hosts give to browsers only are handed over once with ``--file``.
"""

import argparse
import shutil
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from updetr_d2.checkpoint.safe_loading import CheckpointError
from updetr_d2.checkpoint.zoo import ZOO, fetch
from updetr_d2.utils.files import replacing


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the list; without it the list is printed")
    parser.add_argument("--file", type=Path, help="downloaded already")
    parser.add_argument("--output", type=Path, metavar="OUT", help="copy the converted file here")
    return parser


def listing() -> str:
    """The names, and what is published of each file."""
    rows = [
        (name, each.what, each.megabytes or "", each.digest, "by hand" if each.by_hand else "")
        for name, each in ZOO.items()
    ]
    return tabulate(rows, ("name", "what", "MB", "digest", ""))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    if args.name is None:
        print(listing())
        return 0
    setup_logger(name="updetr_d2")
    try:
        path = fetch(args.name, file=args.file)
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb") as source, replacing(args.output) as target:
                shutil.copyfileobj(source, target)
            path = args.output
    except (CheckpointError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0
