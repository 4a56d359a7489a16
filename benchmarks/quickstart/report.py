"""What the quickstart ends with: one table, pictures, and what to do next."""

from pathlib import Path
from statistics import mean

import matplotlib.figure
import numpy as np
from tabulate import tabulate

from benchmarks.quickstart.places import Places
from benchmarks.steps import ROOT
from updetr_d2.comparison.jobs import duration
from updetr_d2.inference.predictor import Predictor
from updetr_d2.visualization.boxes import DPI, add_box, patch_colors, pixels_of

# Lowest score of boxes that are drawn; focal loss gives low ones.
THRESHOLD = 0.3
_PANEL_INCHES = (4.0, 3.3)


def text(content: dict, patches: dict[str, float], files: Places) -> str:
    """The lines at the end.

    Args:
        content: of the comparison's ``compare.json``.
        patches: of ``patches.json``.
        files: of the quickstart.
    """
    found = {name: patches.get(f"found_{name}", 0.0) for name in ("right", "wrong", "absent")}
    kinds = ", ".join(f"{share:.0f} % of the {name} boxes" for name, share in list(found.items())[:2])
    patch_table = tabulate(patch_rows(patches), ("", "mean IoU", "IoU >= 0.5"), floatfmt=".1f")
    columns = ("", "labels", "AP", "AP50", "AP50 of each seed", "a training")
    return f"""
=== Patches: {patches["patches"]} coins cut out of the test pictures and looked for there; no label was used
{patch_table}
A score of 0.5 or more have {kinds}, {found["absent"]:.0f} % of those for coins that are not there.

=== Detectors: two kinds of coins; the test pictures show other coins on other photographs
{tabulate(detector_rows(content), columns, floatfmt=".1f")}
few_label_lite0 is a small DINO, faster_rcnn_lite0 Faster R-CNN on the same CNN.

Pictures:  {shown(files.pictures)}/
Report:    {shown(files.page)} (curves, errors, right and wrong boxes)
Models:    {shown(files.comparison)}/runs/; `make demo` lets you try them in the browser

Next, with your own pictures (docs/FEW_LABELS.md and docs/PRETRAINING.md say which settings to change):
  updetr train --config-file custom/few_label_lite0.yaml MODEL.WEIGHTS {shown(files.cnn)} \\
      DATASETS.TRAIN '("coco:train.json@images",)' DATASETS.TEST '("coco:val.json@images",)' OUTPUT_DIR output/mine
  updetr compare --labels train.json@images --unlabeled folder:photos --weights {shown(files.cnn)} \\
      --output output/compare     which detector and which start suit your data (docs/COMPARE.md)"""


def shown(path: Path) -> Path:
    """A path as one types it in the repository."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def patch_rows(patches: dict[str, float]) -> list[tuple]:
    return [
        ("found by the pre-trained model", patches["mIoU"], patches["recall50"]),
        ("the same model, shown other coins", patches["mIoU_shown_other_things"], None),
        ("one box for all, the best there is", patches["mIoU_best_fixed_box"], None),
    ]


def detector_rows(content: dict) -> list[tuple]:
    """Title, labeled pictures, mean AP and AP50, AP50 of each seed, mean time."""
    rows = []
    for verdict in reversed(content["verdicts"]):
        for contestant in content["contestants"]:
            runs = [
                run
                for run in content["runs"]
                if run["contestant"] == contestant["name"]
                and run["percent"] == verdict["percent"]
                and run["AP"] is not None
            ]
            if runs:
                rows.append(
                    (
                        contestant["title"],
                        verdict["labeled_images"],
                        mean(run["AP"] for run in runs),
                        mean(run["AP50"] for run in runs),
                        ", ".join(f"{run['AP50']:.1f}" for run in runs),
                        duration(mean(run["seconds"] for run in runs)),
                    )
                )
    return rows


def draw(predictors: dict[str, Predictor], image: np.ndarray) -> np.ndarray:
    """The image with what each predictor finds, side by side, RGB uint8."""
    width, height = _PANEL_INCHES
    figure = matplotlib.figure.Figure(
        figsize=(width * len(predictors), height), dpi=DPI, layout="constrained"
    )
    panels = figure.subplots(1, len(predictors), squeeze=False).ravel()
    for axes, (title, predictor) in zip(panels, predictors.items()):
        axes.imshow(image)
        found = predictor(image, threshold=THRESHOLD)
        instances = found.instances
        colors = patch_colors(len(found.class_names))
        for box, label, score in zip(instances.pred_boxes, instances.pred_classes, instances.scores):
            add_box(axes, box.numpy(), colors[label], linewidth=2)
            caption = f"{found.class_names[label]} {score:.2f}"
            axes.text(
                *box[:2].tolist(), caption, fontsize=7, color="white", verticalalignment="top"
            ).set_bbox({"facecolor": colors[label], "edgecolor": "none", "alpha": 0.85, "pad": 1})
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return pixels_of(figure)
