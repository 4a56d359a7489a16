"""Write what a run was and what came of it as one HTML page that can be kept, mailed and opened anywhere.

    updetr report output/finetune output/scratch --labels pre-trained "from scratch" --output report.html

Works for every task, also while a run goes on; trainings and evaluations write it themselves, as report.html of
OUTPUT_DIR. The page holds results, learning curves, what a detector does wrong (kinds of errors, precision and
recall, confusion of classes, examples, suspicious labels), the command to repeat the run, what its config changes
of the recipe and the full config, the environment, and the pictures of the run's folder. Everything is inside the
file; it asks for nothing from the network.
"""

import argparse
import sys
from pathlib import Path

from updetr_d2.report.run_folder import RunFolder
from updetr_d2.report.run_page import PAGE, write_page


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="OUTPUT_DIR of a run")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="name of each run; default: its folder")
    parser.add_argument("--output", help=f"HTML file to write (default: {PAGE} in the first RUN_DIR)")
    parser.add_argument("--title", help="headline (default: the labels)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    names = [Path(run).resolve().name for run in args.runs]
    labels = args.labels or (names if len(set(names)) == len(names) else args.runs)
    output = Path(args.output or Path(args.runs[0]) / PAGE)
    try:
        if len(labels) != len(args.runs) or len(set(labels)) != len(labels):
            raise ValueError(f"{len(args.runs)} runs need as many different labels, not {', '.join(labels)}.")
        runs = {label: RunFolder.read(path) for label, path in zip(labels, args.runs)}
        write_page(runs, output, title=args.title or "")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {output}")
    return 0
