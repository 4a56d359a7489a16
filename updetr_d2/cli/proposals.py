"""Make boxes for images without labels, the objects of pre-training (INPUT.PROPOSALS.FILE).

    updetr proposals /data/photos --source features --output boxes.npz \\
        --config-file custom/few_label_lite0.yaml MODEL.WEIGHTS weights/efficientnet_lite0.pth

IMAGES is a folder or the name of a data set as in DATASETS.TRAIN; of one with labels, the recall of the boxes is
printed. Run the same command again after an interruption: it goes on. Sources:
    random             as UP-DETR's patches
    features           regions in the features of the config's CNN
    selective_search   needs OpenCV's contributed modules
    coco               --file: results or annotations in COCO's format
    model              a detector: --config-file RUN/config.yaml MODEL.WEIGHTS RUN/model_final.pth
"""

import argparse
import functools
import logging
import os
import sys
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

import updetr_d2.inference.model_boxes  # noqa: F401  (registration)
from updetr_d2.checkpoint.run_files import check_writable
from updetr_d2.config.checks import check_registered
from updetr_d2.config.files import read_config
from updetr_d2.data.datasets.names import DatasetDicts, load_dataset_dicts
from updetr_d2.data.proposals import PROPOSAL_REGISTRY, Proposals, SourceOptions
from updetr_d2.data.proposals.file import image_id_of
from updetr_d2.data.proposals.frozen_cnn import FrozenCNN
from updetr_d2.data.proposals.making import Clustering, make_proposals, parts_folder
from updetr_d2.data.proposals.recall import recall_of_first_boxes, true_boxes
from updetr_d2.data.proposals.source import ProposalMapper
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.engine.run_lock import lock_output_dir
from updetr_d2.visualization.boxes import draw_proposals, save_picture

# Boxes of a picture.
_NUM_DRAWN = 10


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", metavar="IMAGES", help="folder, or name of a data set as in DATASETS.TRAIN")
    parser.add_argument("--source", required=True, help="where the boxes come from, see above")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file to write")
    parser.add_argument("--boxes", type=int, default=30, help="most boxes of an image (default: %(default)s)")
    parser.add_argument("--min-score", type=float, default=-float("inf"), help="lowest score of a box")
    parser.add_argument("--file", default="", help="of --source coco")
    parser.add_argument("--config-file", default="", help="config of the CNN or of the detector")
    parser.add_argument(
        "--cluster", type=int, default=0, metavar="K", help="also put the boxes into K clusters"
    )
    parser.add_argument("--cluster-feature", default="res5", help="of the CNN (default: %(default)s)")
    parser.add_argument(
        "--crop", type=int, default=128, help="side (px) of a box for it (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random boxes and clusters")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: work in this one)")
    parser.add_argument("--part", type=int, default=500, help="images kept at a time (default: %(default)s)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="draw N images into FILE.pictures")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config values that override the file's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_intermixed_args(argv)
    setup_logger(name="updetr_d2")
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # it lists the weights that no CNN has
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> Proposals:
    """Make the file of parsed arguments, tell and draw what is in it.

    Raises:
        ValueError: in one sentence, if something cannot be used.
    """
    check_registered("--source", args.source, PROPOSAL_REGISTRY)
    if min(args.boxes, args.crop, args.part) < 1 or min(args.cluster, args.workers, args.show, args.seed) < 0:
        raise ValueError(
            "--boxes, --crop and --part must be positive; --cluster, --workers, --show, --seed at least 0."
        )
    source = PROPOSAL_REGISTRY.get(args.source)
    cfg = read_config(args.config_file, args.opts) if args.config_file else None
    if cfg is None and (source.needs_config or args.cluster):
        raise ValueError(
            f"--source {args.source} or --cluster needs a network: name its --config-file and MODEL.WEIGHTS."
        )
    if cfg is not None and cfg.MODEL.DEVICE != "cpu" and args.workers:
        raise ValueError(f"--workers are for MODEL.DEVICE cpu; with {cfg.MODEL.DEVICE}, use --workers 0.")
    check_writable(str(args.output.absolute().parent))
    name = f"folder:{args.images}" if os.path.isdir(args.images) else args.images
    dataset = load_dataset_dicts([name], filter_empty=False, key="IMAGES")
    options = SourceOptions(args.boxes, cfg, args.file, args.min_score, args.seed)
    limits = {"num_boxes": args.boxes, "min_score": args.min_score}
    clustering = None
    if cfg is not None and args.cluster:
        cnn = functools.partial(FrozenCNN, cfg, [args.cluster_feature])
        clustering = Clustering(args.cluster, cnn, args.crop, args.seed)
    parts = parts_folder(args.output)
    parts.mkdir(parents=True, exist_ok=True)
    lock_output_dir(str(parts), option="--output")
    proposals, num_skipped = make_proposals(
        dataset,
        args.output,
        description=describe(args, cfg),
        mapper=lambda: ProposalMapper(source(options), **limits),
        clustering=clustering,
        num_workers=args.workers,
        part_size=args.part,
    )
    report(proposals, dataset, num_skipped)
    print(f"INPUT.PROPOSALS.FILE {args.output}")
    if args.show:
        show(proposals, dataset, Path(f"{args.output}.pictures"), args.show)
    return proposals


def describe(args: argparse.Namespace, cfg: CfgNode | None) -> dict:
    """What the boxes depend on beside the images."""
    kept = ("source", "boxes", "min_score", "cluster", "cluster_feature", "crop", "seed", "part")
    description = {name: getattr(args, name) for name in kept}
    files = {"file": args.file, "weights": cfg.MODEL.WEIGHTS if cfg is not None else ""}
    for name, path in files.items():
        description[name] = (
            [path, os.stat(path).st_size, os.stat(path).st_mtime_ns] if os.path.isfile(path) else path
        )
    return description | {"config": cfg.dump() if cfg is not None else ""}


def report(proposals: Proposals, dataset: DatasetDicts, num_skipped: int) -> None:
    """Print how many boxes there are and, where the data set has labels, how many objects they find."""
    counts = np.diff(proposals.ends, prepend=0)
    print(
        f"{len(proposals)} images, {counts.sum()} boxes, {counts.min()} to {counts.max()} an image; "
        f"{num_skipped} images skipped"
    )
    recall = recall_of_first_boxes(proposals, dataset)
    if recall:
        parts = ", ".join(f"{number}: {share:.1%}" for number, share in recall.items())
        print(f"recall at IoU 0.5 of the first boxes: {parts}")


def show(proposals: Proposals, dataset: DatasetDicts, folder: Path, number: int) -> None:
    """Draw the first boxes of the first images that can be read."""
    drawn = 0
    for dataset_dict in dataset:
        found = proposals.find(image_id_of(dataset_dict))
        if drawn == number:
            break
        if found is None:
            continue
        try:
            image = read_image_rgb(dataset_dict["file_name"])
        except UnusableImageError:
            continue
        clusters = None if found.clusters is None else found.clusters[:_NUM_DRAWN]
        picture = draw_proposals(
            image, found.boxes[:_NUM_DRAWN], clusters=clusters, true_boxes=true_boxes(dataset_dict).numpy()
        )
        save_picture(picture, str(folder / f"{drawn:04d}.png"))
        drawn += 1
    print(f"{drawn} pictures in {folder}")


if __name__ == "__main__":
    sys.exit(main())
