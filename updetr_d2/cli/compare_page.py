"""The HTML page of ``updetr compare``: verdict, curves, errors, pictures of right and wrong boxes."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from updetr_d2.comparison.jobs import duration
from updetr_d2.comparison.results import AP, AP50, mean_curve, read_predictions
from updetr_d2.comparison.study import Study
from updetr_d2.data.datasets.label_splits import Labels
from updetr_d2.data.transforms.image_io import read_image_rgb
from updetr_d2.evaluation.detection_errors import ErrorSummary, summarize
from updetr_d2.evaluation.detection_matching import ImageResult, read_results
from updetr_d2.evaluation.error_examples import ImageCounts, choose_examples, count_images
from updetr_d2.evaluation.error_report import draw_result
from updetr_d2.report.errors import figures
from updetr_d2.report.page import inline_figure, inline_pixels, render_template
from updetr_d2.visualization.comparison import plot_over_labels
from updetr_d2.visualization.curves import plot_curves

NUM_PICTURES = 2  # of each group
PAGE = "compare.html"


@dataclass(frozen=True)
class Detections:
    """What a contestant finds on the test set, with all labels and the first seed that did not fail.

    Attributes:
        title: of the contestant.
        results: of all test images.
        summary: of its errors.
    """

    title: str
    results: list[ImageResult]
    summary: ErrorSummary


def read_detections(study: Study, test: Labels) -> dict[str, Detections]:
    """Contestant -> its detections; without those whose trainings have all failed."""
    classes = {category["id"]: category["name"] for category in test.content["categories"]}
    found = {}
    for contestant in study.plan.contestants:
        for (name, percent, _), measured in sorted(study.measured.items(), key=lambda each: each[0][2]):
            if name == contestant.name and percent == study.percents[-1] and not measured.failure:
                training = study.trainings[name, percent, _]
                results = read_results(test.content, read_predictions(training))
                found[name] = Detections(contestant.title, results, summarize(results, classes))
                break
    return found


def render_page(
    study: Study,
    detections: dict[str, Detections],
    test: Labels,
    *,
    facts: Sequence[tuple[str, str]],
    command: str,
) -> str:
    """The page.

    Args:
        study: what was measured.
        detections: of :func:`read_detections`.
        test: labels of the test set.
        facts: about the data and the comparison, name and value.
        command: that repeats it.

    Returns:
        HTML that needs no other file.
    """
    return render_template(
        "compare.html.jinja",
        verdicts=[
            (study.num_images(percent), study.verdict(percent).sentences)
            for percent in reversed(study.percents)
        ],
        tables=[
            (study.num_images(percent), score_rows(study, percent)) for percent in reversed(study.percents)
        ],
        rates=rate_rows(study),
        over_labels=inline_figure(plot_over_labels(over_labels(study), metric="AP")),
        over_iterations=over_iterations(study),
        errors=figures({each.title: each.summary for each in detections.values()}) if detections else None,
        pictures=pictures(detections, test),
        facts=facts,
        command=command,
    )


def score_rows(study: Study, percent: float) -> list[tuple[str, ...]]:
    """Title, mean AP with its range, mean AP50, learning rate and time of each contestant, best first."""
    rows: list[tuple[str, ...]] = []
    for scores in sorted(study.scores(percent), key=lambda each: -each.mean):
        values = scores.values
        spread = f" ({min(values):.1f} – {max(values):.1f})" if len(values) > 1 else ""
        rows.append(
            (
                scores.title,
                f"{scores.mean:.1f}{spread}" if values else "failed",
                f"{scores.mean_ap50:.1f}",
                f"{study.rates[scores.name]:g}",
                duration(scores.seconds),
            )
        )
    return rows


def rate_rows(study: Study) -> list[tuple[str, str]]:
    """Title of each contestant, and AP on held-out labels by learning rate."""
    return [
        (each.title, ", ".join(f"{rate:g}: {_value(measured.ap)}" for rate, measured in sweep.items()))
        for each in study.plan.contestants
        if (sweep := study.sweeps.get(each.name))
    ]


def _value(value: float) -> str:
    return "failed" if math.isnan(value) else f"{value:.1f}"


def over_labels(study: Study) -> dict[str, dict[int, list[float]]]:
    """Title -> number of labelled images -> AP of the seeds."""
    return {
        contestant.title: {
            study.num_images(percent): each.values
            for percent in study.percents
            for each in study.scores(percent)
            if each.name == contestant.name
        }
        for contestant in study.plan.contestants
    }


def over_iterations(study: Study) -> str | None:
    """Mean curves with all labels as an image; None where nothing was evaluated."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for contestant in study.plan.contestants:
        own = [
            measured.curves
            for (name, percent, _), measured in study.measured.items()
            if name == contestant.name and percent == study.percents[-1] and not measured.failure
        ]
        if own:
            curves[contestant.title] = {
                metric: mean_curve([each[metric] for each in own]) for metric in (AP, AP50)
            }
    return inline_figure(plot_curves(curves, (AP, AP50))) if curves else None


def pictures(detections: dict[str, Detections], test: Labels) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group and file name of some test images, and for each contestant its title with the picture."""
    if not detections:
        return []
    classes = {category["id"]: category["name"] for category in test.content["categories"]}
    counts = [count_images(each.results, each.summary.threshold) for each in detections.values()]
    together = [sum(of_image, ImageCounts()) for of_image in zip(*counts)]
    rows = []
    for group, indices in choose_examples(together, NUM_PICTURES).items():
        for index in indices:
            name = test.images[index]["file_name"]
            image = read_image_rgb(os.path.join(test.image_folder, name))
            row = [
                (
                    f"{each.title}: {own[index].describe()}",
                    inline_pixels(
                        Image.fromarray(
                            draw_result(image, each.results[index], each.summary.threshold, classes)
                        )
                    ),
                )
                for own, each in zip(counts, detections.values())
            ]
            rows.append((f"{group}: {name}", row))
    return rows
