"""Write clean labels in COCO's format from YOLO's, Pascal VOC's, or from a COCO file of an annotation tool.

    updetr import yolo:data.yaml --output labels
    updetr import voc:VOC2007@trainval --output labels
    updetr import coco:export.json@images --output labels

Each split becomes a file, such as ``labels/data-train.json``; what had to be repaired is printed as a table.
``updetr split`` divides a file further. The names work in DATASETS as they are, too.
"""

import argparse
import json
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from updetr_d2.data.datasets.label_splits import Labels
from updetr_d2.data.datasets.voc_folder import splits_of_voc
from updetr_d2.data.datasets.yolo import splits_of_yolo
from updetr_d2.utils.files import write_text

_SPLITS = {"yolo": splits_of_yolo, "voc": splits_of_voc}


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", metavar="FORMAT:LOCATION", help="as in DATASETS (docs/DATASETS.md)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    return parser


def names_of_splits(name: str) -> list[str]:
    """The data sets that a name without a split stands for."""
    prefix, _, location = name.partition(":")
    splits = _SPLITS[prefix](location) if prefix in _SPLITS and Path(location).expanduser().exists() else []
    return [f"{name}@{split}" for split in splits] or [name]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    setup_logger(name="updetr_d2")
    try:
        rows = []
        for name in names_of_splits(args.labels):
            labels = Labels.read(name, option="The name of the labels")
            args.output.mkdir(parents=True, exist_ok=True)
            path = args.output / f"{labels.stem}.json"
            write_text(path, json.dumps(labels.content))
            counts = (len(labels.images), len(labels.objects), len(labels.class_names))
            rows.append((f"coco:{path}@{labels.image_folder}", *counts))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(tabulate(rows, ("name for DATASETS", "images", "objects", "classes")))
    return 0
