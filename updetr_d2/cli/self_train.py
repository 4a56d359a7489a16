"""Pre-train in rounds: on boxes of a source, then on those that the model of the round before has found.

    updetr self-train /data/photos --rounds 2 --output output/self_train \\
        --config-file custom/few_label_lite0_pretrain.yaml MODEL.WEIGHTS weights/efficientnet_lite0.pth

Round r makes OUTPUT/round_r/boxes.npz (round 1 by --source, see `updetr proposals --help`) and trains into
OUTPUT/round_r/model, from the model of the round before. Each step is a process of its own; what is done is not
done again, so the same command goes on after an interruption.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", metavar="IMAGES", help="folder, or name of a data set as in DATASETS.TRAIN")
    parser.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument("--config-file", required=True, help="of pre-training")
    parser.add_argument("--source", default="features", help="of the boxes of round 1 (default: %(default)s)")
    parser.add_argument("--file", default="", help="of --source coco")
    parser.add_argument("--boxes", type=int, default=10, help="most boxes of an image (default: %(default)s)")
    parser.add_argument(
        "--min-score", type=float, default=0.2, help="of a model's box, in [0, 1] (default: %(default)s)"
    )
    parser.add_argument("--cluster", type=int, default=0, metavar="K", help="of every round")
    parser.add_argument("--crop", type=int, default=128, help="see `updetr proposals`")
    parser.add_argument("--workers", type=int, default=0, help="processes that make boxes")
    parser.add_argument("--num-gpus", type=int, default=1, help="of training")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config values that override the file's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, that of the first step that fails."""
    args = get_parser().parse_intermixed_args(argv)
    if args.rounds < 1:
        print("error: --rounds must be at least 1.", file=sys.stderr)
        return 1
    for number in range(1, args.rounds + 1):
        for command in round_commands(args, number):
            print("updetr", " ".join(command), flush=True)
            status = subprocess.run([sys.executable, "-m", "updetr_d2.cli.command", *command]).returncode
            if status:
                return status if status > 0 else 128 - status
    return 0


def round_commands(args: argparse.Namespace, number: int) -> list[list[str]]:
    """The commands of a round that are still to be run.

    Args:
        args: of the command line.
        number: of the round, from 1.
    """
    folder, before = (args.output / f"round_{i}" for i in (number, number - 1))
    boxes, model, weights = folder / "boxes.npz", folder / "model", before / "model" / "model_final.pth"
    commands = []
    if not boxes.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if number == 1:
            source = [
                "--source",
                args.source,
                "--file",
                args.file,
                "--config-file",
                args.config_file,
                *args.opts,
            ]
        else:
            # The run's config has all that the model was trained with.
            config_file = str(before / "model" / "config.yaml")
            source = ["--source", "model", "--min-score", str(args.min_score)]
            source += ["--config-file", config_file, "MODEL.WEIGHTS", str(weights)]
        limits = {
            "--boxes": args.boxes,
            "--cluster": args.cluster,
            "--crop": args.crop,
            "--workers": args.workers,
        }
        options = [text for name, value in limits.items() for text in (name, str(value))]
        commands.append(["proposals", args.images, "--output", str(boxes), *options, *source])
    if not (model / "model_final.pth").is_file():
        dataset = f"folder:{os.path.abspath(args.images)}" if os.path.isdir(args.images) else args.images
        training = ["train", "--resume", "--num-gpus", str(args.num_gpus), "--config-file", args.config_file]
        training += [*args.opts, "DATASETS.TRAIN", f"({dataset!r},)", "INPUT.PROPOSALS.FILE", str(boxes)]
        training += ["OUTPUT_DIR", str(model)]
        if number > 1:
            training += ["MODEL.WEIGHTS", str(weights)]
        commands.append(training)
    return commands
