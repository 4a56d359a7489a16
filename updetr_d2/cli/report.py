"""Write what a run was and what came of it as one HTML page that can be kept, mailed and opened anywhere.

    updetr report output/finetune output/scratch --labels pre-trained "from scratch" --output report.html

Works for every task, also while a run goes on. The page holds results, learning curves, the command to repeat the
run, what its config changes of the recipe and the full config, the environment, and the pictures of the run's
folder. Everything is inside the file; it asks for nothing from the network.
"""

import argparse
import base64
import datetime
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib.figure
from PIL import Image

from updetr_d2.config.files import CONFIGS
from updetr_d2.engine.run_folder import RunFolder, differences, is_number
from updetr_d2.visualization.curves import plot_curves

TEMPLATES = Path(__file__).parent
# Curves that are drawn if a run has them, before all metrics of evaluation that are not of a single class.
TRAINING_CURVES = (
    "total_loss",
    "loss_ce",
    "loss_bbox",
    "loss_giou",
    "loss_feature",
    "loss_mask",
    "loss_dice",
    "lr",
)
CURVE_COLUMNS = 3
MAX_METRIC_CURVES = 9
MAX_PICTURES = 12  # of each folder
PICTURE_WIDTH = 960  # px, at most
JPEG_QUALITY = 88


def render(runs: dict[str, RunFolder], *, title: str) -> str:
    """The page.

    Args:
        runs: label -> run.
        title: headline.

    Returns:
        HTML.
    """
    names = list(dict.fromkeys(name for run in runs.values() for name in run.metrics))
    return render_template(
        "report.html.jinja",
        title=title,
        runs=[describe_run(label, run) for label, run in runs.items()],
        metrics=result_rows(runs, [name for name in names if not of_one_class(name)]),
        class_metrics=result_rows(runs, [name for name in names if of_one_class(name)]),
        curves=draw_curves(runs),
    )


def render_template(template: str, **values: object) -> str:
    """A page.

    Args:
        template: name of a file beside this one.
        **values: for it; ``written`` is the time.

    Returns:
        HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    written = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return environment.get_template(template).render(written=written, **values)


def describe_run(label: str, run: RunFolder) -> dict:
    """What the template says about one run."""
    recipe = run.recipe(CONFIGS)
    pictures: dict[str, list] = {}
    problems = list(run.problems)
    for folder, files in run.pictures.items():
        pictures[folder] = []
        for file in files[:MAX_PICTURES]:
            try:
                pictures[folder].append((file.name, inline_picture(file)))
            except Exception as error:  # damaged files make Pillow raise nearly anything
                problems.append(f"{folder}/{file.name} is no picture ({type(error).__name__}: {error}).")
    return {
        "label": label,
        "model": run.config.get("MODEL.META_ARCHITECTURE", "?"),
        "trained_on": listed(run.config.get("DATASETS.TRAIN")),
        "tested_on": listed(run.config.get("DATASETS.TEST")),
        "problems": problems,
        "config": run.config,
        "state": run.state,
        "command": run.command,
        "environment": run.environment,
        "recipe_name": run.arguments.get("config_file"),
        "differences": None if recipe is None else differences(run.config, recipe),
        "pictures": list(pictures.items()),
    }


def listed(names: object) -> str:
    """The names of data sets in a line."""
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else str(names or "")


def of_one_class(metric: str) -> bool:
    """Whether a metric is that of a class, as in "bbox/AP-fish"."""
    return "-" in metric.rpartition("/")[2]


def result_rows(runs: dict[str, RunFolder], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """A row of texts for each metric, with a cell for each run."""
    rows = []
    for name in names:
        values = [run.metrics.get(name) for run in runs.values()]
        rows.append((name, [f"{value:.5g}" if is_number(value) else "–" for value in values]))
    return rows


def draw_curves(runs: dict[str, RunFolder]) -> str | None:
    """Losses and metrics of all runs as an image for the page, None if there is nothing to draw."""
    logged = list(dict.fromkeys(name for run in runs.values() for name in run.curves))
    metrics = [name for name in logged if "/" in name and not of_one_class(name) and has_course(runs, name)]
    names = [name for name in TRAINING_CURVES if name in logged] + metrics[:MAX_METRIC_CURVES]
    if not names:
        return None
    return inline_figure(
        plot_curves({label: r.curves for label, r in runs.items()}, names, columns=CURVE_COLUMNS)
    )


def has_course(runs: dict[str, RunFolder], metric: str) -> bool:
    """Whether some run has measured the metric more than once."""
    return any(sum(map(is_number, run.curves.get(metric, {}).values())) > 1 for run in runs.values())


def inline_figure(figure: matplotlib.figure.Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return data_url(content.getvalue(), "image/png")


def inline_picture(file: Path) -> str:
    """A picture for the page, smaller in pixels and bytes than the file."""
    with Image.open(file) as image:
        return inline_pixels(image.convert("RGB"))


def inline_pixels(picture: Image.Image) -> str:
    """An RGB picture for the page, made smaller in place."""
    content = io.BytesIO()
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    picture.save(content, format="JPEG", quality=JPEG_QUALITY)
    return data_url(content.getvalue(), "image/jpeg")


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="OUTPUT_DIR of a run")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="name of each run; default: its folder")
    parser.add_argument("--output", help="HTML file to write (default: report.html in the first RUN_DIR)")
    parser.add_argument("--title", help="headline (default: the labels)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    names = [Path(run).resolve().name for run in args.runs]
    labels = args.labels or (names if len(set(names)) == len(names) else args.runs)
    output = Path(args.output or Path(args.runs[0]) / "report.html")
    try:
        if len(labels) != len(args.runs) or len(set(labels)) != len(labels):
            raise ValueError(f"{len(args.runs)} runs need as many different labels, not {', '.join(labels)}.")
        runs = {label: RunFolder.read(path) for label, path in zip(labels, args.runs)}
        page = render(runs, title=args.title or ", ".join(labels))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {output}")
    return 0
