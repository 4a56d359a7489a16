#!/usr/bin/env python
"""Draw learning curves of one or more runs from their ``metrics.json``.

    python tools/plot_curves.py output/finetune output/scratch --labels pre-trained "from scratch" \
        --metric bbox/AP bbox/AP50 --output curves.png

Every metric gets a panel, every run a line. Names are those in metrics.json: bbox/AP, query_patch/AP,
panoptic_seg/PQ, total_loss, lr, ...; a wrong one is answered with the list.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg

PANEL_SIZE = (5.5, 3.8)  # inches
DPI = 120
# Curves of at most so many points show each of them: evaluations rather than losses.
MAX_MARKED_POINTS = 60


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a run, or its metrics.json")
    parser.add_argument("--metric", nargs="+", default=["bbox/AP"], metavar="NAME", help="one panel for each")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="name of each run; default: its folder")
    parser.add_argument("--output", default="curves.png", help="PNG file to write (default: %(default)s)")
    parser.add_argument("--title", help="headline of the picture")
    return parser


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); name the OUTPUT_DIR of a run that has logged something."
        ) from error
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            iteration = record.pop("iteration")
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        for name, value in record.items():
            if isinstance(value, (int, float)):
                curves.setdefault(name, {})[iteration] = value
    if not curves:
        raise ValueError(f"{path} holds no metrics; is it the metrics.json of a run?")
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def plot_curves(
    runs: dict[str, dict[str, dict[int, float]]], metrics: Sequence[str], *, title: str | None = None
) -> matplotlib.figure.Figure:
    """Draw a panel for each metric with a line for each run that has it.

    Args:
        runs: label -> curves of :func:`read_metrics`.
        metrics: names of the metrics.
        title: headline.

    Raises:
        ValueError: if no run has one of the metrics.
    """
    figure = matplotlib.figure.Figure(figsize=(PANEL_SIZE[0] * len(metrics), PANEL_SIZE[1]), dpi=DPI)
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        if not any(metric in curves for curves in runs.values()):
            known = sorted({name for curves in runs.values() for name in curves})
            raise ValueError(f"No run has logged '{metric}'; there are {', '.join(known)}.")
        for label, curves in runs.items():
            points = curves.get(metric, {})
            marker = "o" if len(points) <= MAX_MARKED_POINTS else None
            axes.plot(list(points), list(points.values()), marker=marker, markersize=4, label=label)
        axes.set(xlabel="iteration", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    return figure


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    paths = [Path(run) / "metrics.json" if Path(run).is_dir() else Path(run) for run in args.runs]
    labels = args.labels or [str(path.parent) for path in paths]
    try:
        if len(set(labels)) != len(paths):
            raise ValueError(f"{len(paths)} runs need as many different labels, not {', '.join(labels)}.")
        runs = {label: read_metrics(path) for label, path in zip(labels, paths)}
        figure = plot_curves(runs, args.metric, title=args.title)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
