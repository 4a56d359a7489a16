"""Divide labels in COCO's format for training with few of them; the rest becomes a list of images without labels.

    updetr split --labels train.json@images --output splits --percent 1 5 10 --seeds 1 2 3 4 5
    updetr split --labels train.json@images --output splits --images-per-class 5 --seeds 1
    updetr split --labels train.json@images --output splits --shots 1 5 10 --held-out 0.2
    updetr split --labels export.json@images --output splits --labeled-only --held-out 0.2

``--percent`` writes the files of Soft Teacher's script, with its random numbers: ``train.FOLD@PERCENT.json`` and
``train.FOLD@PERCENT-unlabeled.json``. ``--shots`` keeps exactly so many objects of each class, as TFA does, and
``--images-per-class`` whole images. ``--held-out`` divides each part once more: ``...-train.json`` to train on and
``...-held-out.json`` to choose settings by, so that the test set is left for the end. The same labels and seed
give the same files everywhere. ``--labeled-only`` is for exports of an annotation tool that hold images which
nobody has labeled yet: they go into ``...-unlabeled.json`` beforehand, instead of counting as background.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from updetr_d2.data.datasets import label_splits
from updetr_d2.data.datasets.classes import MANY_EMPTY
from updetr_d2.data.datasets.label_splits import Labels
from updetr_d2.utils.files import write_text

logger = logging.getLogger("updetr_d2")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labels", required=True, metavar="JSON@DIR", help="annotation file @ folder of its images"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    parser.add_argument("--percent", nargs="+", type=float, default=[], metavar="P", help="of the images")
    parser.add_argument("--images-per-class", nargs="+", type=int, default=[], metavar="K")
    parser.add_argument("--shots", nargs="+", type=int, default=[], metavar="K", help="objects of each class")
    parser.add_argument("--held-out", type=float, metavar="SHARE", help="of each part, for choosing settings")
    parser.add_argument(
        "--labeled-only", action="store_true", help="images without an object are not labeled yet"
    )
    parser.add_argument(
        "--seeds", "--folds", nargs="+", type=int, default=[1], metavar="N", help="default: %(default)s"
    )
    return parser


def parts(labels: Labels, args: argparse.Namespace) -> Iterator[tuple[str, Labels]]:
    """Name and content of the files that the command line asks for."""
    if args.labeled_only:
        labeled = labels.labeled_images()
        yield f"{labels.stem}-labeled", labels.part(labeled)
        yield f"{labels.stem}-unlabeled", labels.without(labeled)
        labels = labels.part(labeled)
    for seed in args.seeds:
        whole = not (args.percent or args.images_per_class or args.shots)
        chosen: list[tuple[str, Labels]] = [(f"{labels.stem}.{seed}", labels)] if whole else []
        for percent in args.percent:
            part = labels.part(label_splits.fraction(labels, percent=percent, seed=seed))
            chosen.append((f"{labels.stem}.{seed}@{percent:g}", part))
        for count in args.images_per_class:
            part = labels.part(label_splits.images_per_class(labels, count=count, seed=seed))
            chosen.append((f"{labels.stem}.{seed}@{count}images", part))
        for count in args.shots:
            part = label_splits.shots(labels, count=count, seed=seed)
            chosen.append((f"{labels.stem}.{seed}@{count}shot", part))
        for name, part in chosen:
            if not whole:
                yield name, part
                yield f"{name}-unlabeled", labels.without({image["id"] for image in part.images})
            if args.held_out is not None:
                train, held_out = label_splits.hold_out(part, share=args.held_out, seed=seed)
                yield f"{name}-train", train
                yield f"{name}-held-out", held_out


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse a command line that asks for nothing, or for something that cannot be.

    Raises:
        ValueError: naming the option.
    """
    ways = (args.percent, args.images_per_class, args.shots, args.labeled_only)
    if not any(ways) and args.held_out is None:
        raise ValueError(
            "Say how to divide: --percent, --images-per-class, --shots, --held-out or --labeled-only."
        )
    for option, values in (("--images-per-class", args.images_per_class), ("--shots", args.shots)):
        if any(value < 1 for value in values):
            raise ValueError(f"{option} must be at least 1.")
    if any(not 0 <= seed < 2**32 for seed in args.seeds):
        raise ValueError("--seeds must be in [0, 2**32).")


def write_labels(labels: Labels, path: Path) -> None:
    """Write labels in COCO's format, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(labels.content))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    setup_logger(name="updetr_d2")
    try:
        check_arguments(args)
        labels = Labels.read(args.labels, option="--labels")
        num_empty = len(labels.images) - len(labels.labeled_images())
        if num_empty >= MANY_EMPTY * len(labels.images) and not args.labeled_only:
            logger.warning(
                "%d of %d images have no object: say --labeled-only if nobody has labeled them yet, or they will "
                "count as background in training and in the held-out part.",
                *(num_empty, len(labels.images)),
            )
        rows = []
        for name, part in list(parts(labels, args)):  # all or nothing
            write_labels(part, args.output / f"{name}.json")
            missing = [each for each, count in part.objects_per_class().items() if not count]
            without = "" if name.endswith("-unlabeled") else ", ".join(missing)
            rows.append((f"{name}.json", len(part.images), len(part.objects), without))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(tabulate(rows, (f"in {args.output}", "images", "objects", "classes without an object")))
    print(f"Name them coco:{args.output}/FILE@{labels.image_folder} in DATASETS.")
    return 0
