"""The page of one or several runs: results, curves, errors, pictures, how to repeat them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from updetr_d2.config.files import CONFIGS
from updetr_d2.report.errors import ErrorAnalysis, describe_errors
from updetr_d2.report.page import inline_figure, inline_picture, render_template
from updetr_d2.report.run_folder import RunFolder, differences, is_number
from updetr_d2.utils.files import write_text
from updetr_d2.visualization.curves import plot_curves

PAGE = "report.html"
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


def render(runs: dict[str, RunFolder], *, title: str) -> str:
    """The page.

    Args:
        runs: label -> run.
        title: headline.

    Returns:
        HTML.
    """
    names = list(dict.fromkeys(name for run in runs.values() for name in run.metrics))
    unreadable: list[str] = []
    errors = describe_errors(list(labeled_analyses(runs)), unreadable)
    return render_template(
        "report.html.jinja",
        title=title,
        runs=[describe_run(label, run) for label, run in runs.items()],
        metrics=result_rows(runs, [name for name in names if not of_one_class(name)]),
        class_metrics=result_rows(runs, [name for name in names if of_one_class(name)]),
        curves=draw_curves(runs),
        errors=errors,
        unreadable=unreadable,
    )


def labeled_analyses(runs: dict[str, RunFolder]) -> Iterator[tuple[str, ErrorAnalysis]]:
    """What was done wrong, labeled by the run and, of averaged weights, their folder."""
    for label, run in runs.items():
        for folder, analysis in run.analyses.items():
            above = Path(folder).parts[0]
            yield (label if above == "inference" else f"{label}, {above}"), analysis


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


def write_page(runs: dict[str, RunFolder], path: Path, *, title: str = "") -> None:
    """Write the page of runs, whole or not at all.

    Args:
        runs: label -> run.
        path: of the HTML file, whose folder is made.
        title: headline; "" for the labels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(runs, title=title or ", ".join(runs)))
