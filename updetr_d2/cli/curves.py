"""Draw learning curves of one or more runs from their ``metrics.json``.

    updetr curves output/finetune output/scratch --labels pre-trained "from scratch" \\
        --metric bbox/AP bbox/AP50 --output curves.png

Every metric gets a panel, every run a line. Names are those in metrics.json: bbox/AP, query_patch/AP,
panoptic_seg/PQ, total_loss, lr, ...; a wrong one is answered with the list.
"""

import argparse
import sys
from pathlib import Path

from updetr_d2.visualization.curves import plot_curves, read_metrics


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
