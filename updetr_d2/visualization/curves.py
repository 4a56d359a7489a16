"""Learning curves: read from the ``metrics.json`` of runs, drawn side by side."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

PANEL_SIZE = (5.5, 3.8)  # inches
DPI = 120
# Curves of at most so many points show each of them: evaluations rather than losses.
MAX_MARKED_POINTS = 60
# More would cover the curves: their legend is below the panels.
MAX_RUNS_IN_PANEL_LEGEND = 4


def new_figure(
    columns: int = 1, *, height: float = PANEL_SIZE[1]
) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """A figure with panels in a row."""
    figure = matplotlib.figure.Figure(
        figsize=(PANEL_SIZE[0] * columns, height), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False).ravel())


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Read the curves of a run.

    Args:
        path: a ``metrics.json`` of Detectron2, one JSON object a line. Where a resumed run has written an
            iteration again, its later value counts; a line cut off by a crash is left out.

    Returns:
        metric name -> {iteration: value}, in the order of the iterations.

    Raises:
        ValueError: if the file is missing or has no metrics.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); name the OUTPUT_DIR of a run that has logged something."
        ) from error
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            iteration = record.pop("iteration")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            continue
        if not isinstance(iteration, int) or not fits_float(iteration):
            continue
        for name, value in record.items():
            if fits_float(value):
                curves.setdefault(name, {})[iteration] = value
    if not curves:
        raise ValueError(f"{path} holds no metrics; is it the metrics.json of a run?")
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def fits_float(value: object) -> bool:
    """Whether a value of a JSON file, which may hold integers of any length, is a number that can be drawn."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def last_values(curves: dict[str, dict[int, float]], metrics: Iterable[str]) -> dict[str, float | None]:
    """The last point of each of the metrics, None of one that was not logged."""
    return {metric: curves[metric][max(curves[metric])] if metric in curves else None for metric in metrics}


def plot_curves(
    runs: dict[str, dict[str, dict[int, float]]],
    metrics: Sequence[str],
    *,
    title: str | None = None,
    columns: int | None = None,
) -> matplotlib.figure.Figure:
    """Draw a panel for each metric with a line for each run that has it.

    Args:
        runs: label -> curves of :func:`read_metrics`.
        metrics: names of the metrics.
        title: headline.
        columns: panels in a row; None puts all in one.

    Raises:
        ValueError: if no run has one of the metrics.
    """
    columns = min(columns or len(metrics), len(metrics))
    rows = -(-len(metrics) // columns)
    size = (PANEL_SIZE[0] * columns, PANEL_SIZE[1] * rows)
    figure = matplotlib.figure.Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in panels[len(metrics) :]:
        figure.delaxes(unused)
    for axes, metric in zip(panels, metrics):
        if not any(metric in curves for curves in runs.values()):
            known = sorted({name for curves in runs.values() for name in curves})
            raise ValueError(f"No run has logged '{metric}'; there are {', '.join(known)}.")
        for label, curves in runs.items():
            points = curves.get(metric, {})
            marker = "o" if len(points) <= MAX_MARKED_POINTS else None
            axes.plot(list(points), list(points.values()), marker=marker, markersize=4, label=label)
        axes.set(xlabel="iteration", ylabel=metric)
        axes.grid(alpha=0.3)
        if len(runs) <= MAX_RUNS_IN_PANEL_LEGEND:
            axes.legend()
    if len(runs) > MAX_RUNS_IN_PANEL_LEGEND:
        # One for all panels; a panel that lacks some runs has the same colors for the others.
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * columns)
    if title:
        figure.suptitle(title)
    return figure
