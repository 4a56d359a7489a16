"""What the trainings of a comparison have measured: metrics, curves, predictions."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from updetr_d2.comparison.jobs import read_done
from updetr_d2.comparison.plan import Training
from updetr_d2.visualization.curves import read_metrics

AP, AP50 = "bbox/AP", "bbox/AP50"


@dataclass(frozen=True)
class Measured:
    """The result of a training.

    Attributes:
        ap: COCO's AP at the end in percent; NaN if the training failed.
        ap50: likewise.
        curves: "bbox/AP" and "bbox/AP50" -> {iteration: value}.
        seconds: of its iterations, without starting and evaluating; 0 if unknown.
        failure: why there is no result; "" if there is one.
    """

    ap: float
    ap50: float
    curves: dict[str, dict[int, float]]
    seconds: float
    failure: str = ""


def read_measured(training: Training) -> Measured:
    """The result of a training that is done."""
    record = read_done(training) or {}
    failure = str(record.get("failure", ""))
    try:
        logged = read_metrics(training.folder / "metrics.json")
    except ValueError as error:
        return Measured(math.nan, math.nan, {AP: {}, AP50: {}}, 0.0, failure or str(error))
    # Of each iteration, so that it is right for a training that went on after a stop, too.
    times = list(logged.get("time", {}).values())
    seconds = mean(times) * training.iterations if times else 0.0
    curves = {name: logged.get(f"{training.metric_prefix}{name}", {}) for name in (AP, AP50)}
    if failure or not curves[AP]:
        return Measured(math.nan, math.nan, curves, seconds, failure or "it was not evaluated")
    last = {name: list(points.values())[-1] for name, points in curves.items()}
    return Measured(last[AP], last[AP50], curves, seconds)


def read_predictions(training: Training) -> list[dict]:
    """The predictions on the test set at the end of a training; none if there is no such file."""
    folder = training.folder / training.results / "inference"
    files = sorted(folder.glob("*/coco_instances_results.json"))
    if not files:
        return []
    content = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    return content if isinstance(content, list) else []


def mean_curve(curves: list[dict[int, float]]) -> dict[int, float]:
    """Mean over trainings at the iterations that all of them were evaluated at."""
    common = set.intersection(*map(set, curves)) if curves else set()
    return {i: mean(curve[i] for curve in curves) for i in sorted(common)}


def best_rate(measured: dict[float, Measured], *, default: float) -> float:
    """The learning rate with the highest AP on held-out labels.

    Args:
        measured: rate -> its result.
        default: of the config, taken where none has learned anything or the others are not better.
    """
    ap = {rate: 0.0 if math.isnan(each.ap) else each.ap for rate, each in measured.items()}
    return max(ap, key=lambda rate: (ap[rate], rate == default))
