"""What detectors do wrong, as pages show it: numbers, figures, examples of one evaluation, or several together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from updetr_d2.evaluation.detection_errors import ErrorSummary
from updetr_d2.evaluation.error_report import PICTURES_FOLDER
from updetr_d2.report.page import inline_figure, inline_picture
from updetr_d2.visualization.errors import (
    BOX_COLORS,
    plot_class_precision,
    plot_confusion,
    plot_costs,
    plot_precision,
)

# Headlines of the folders of pictures, in their order.
GROUPS = {
    "worst": "The worst images",
    "best": "The best images",
    "random": "Random images",
    "labels": "Labels to look at",
}
_MOST_PICTURES = 12  # of each group
_MOST_SUSPECTS = 60
_MOST_CONFUSIONS = 4  # matrices of one headline


@dataclass(frozen=True)
class ErrorAnalysis:
    """What an evaluation has written about its errors, see :class:`.evaluation.error_report.ErrorReport`.

    Attributes:
        dataset: its name.
        num_images: that were evaluated.
        num_analyzed: of these whose errors were counted.
        summary: the numbers.
        pictures: group -> pictures with what stands below them.
        suspects: rows of texts: kind, image, box, found, labeled.
    """

    dataset: str
    num_images: int
    num_analyzed: int
    summary: ErrorSummary
    pictures: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    suspects: list[tuple[str, ...]] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "ErrorAnalysis":
        """
        Args:
            file: ``errors.json``; pictures are those in the folder ``errors`` beside it.

        Raises:
            ValueError: if it is damaged.
        """
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no summary of errors")
        summary = ErrorSummary.from_json(content)
        try:
            notes = {group: dict(names) for group, names in content["pictures"].items()}
            suspects = [_suspect_row(each) for each in content["suspicious_labels"][:_MOST_SUSPECTS]]
            counts = int(content["num_images"]), int(content["num_analyzed"])
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"it is no summary of errors ({error!r})") from error
        pictures = {}
        for group in GROUPS:
            files = sorted((file.parent / PICTURES_FOLDER / group).glob("*.jpg"))[:_MOST_PICTURES]
            pictures[group] = [(each, str(notes.get(group, {}).get(each.name, each.name))) for each in files]
        return cls(str(content.get("dataset")), *counts, summary, pictures, suspects)


def _suspect_row(suspect: dict) -> tuple[str, ...]:
    box = ", ".join(f"{float(value):.0f}" for value in suspect["box"])
    score = f" {float(suspect['score']):.2f}" if suspect["found"] is not None else ""
    found = "–" if suspect["found"] is None else f"{suspect['found']}{score}"
    labeled = "–" if suspect["labeled"] is None else str(suspect["labeled"])
    return str(suspect["kind"]), str(suspect["image"]), box, found, labeled


def figures(summaries: Mapping[str, ErrorSummary]) -> dict:
    """Numbers and figures of detectors on one data set for the template ``errors.html.jinja``.

    Args:
        summaries: label -> errors; at least one.
    """
    first = next(iter(summaries.values()))
    classes = None
    if len(summaries) == 1 and len(first.class_precision) > 1:
        classes = inline_figure(plot_class_precision(first.class_precision))
    return {
        "kinds": list(first.counts),
        "counts": [(label, f"{s.threshold:.2f}", list(s.counts.values())) for label, s in summaries.items()],
        "costs": inline_figure(plot_costs({label: s.costs for label, s in summaries.items()})),
        "precision": inline_figure(plot_precision({label: s.precision for label, s in summaries.items()})),
        "class_precision": classes,
        "confusion": [
            (label, inline_figure(plot_confusion(s.confusion, s.class_names)))
            for label, s in list(summaries.items())[:_MOST_CONFUSIONS]
        ],
        "colors": BOX_COLORS,
    }


def describe_errors(analyses: Sequence[tuple[str, ErrorAnalysis]], problems: list[str]) -> list[dict]:
    """What the template says of evaluations: those on the same data set together.

    Args:
        analyses: label of a run and analysis.
        problems: gets a sentence for each picture that cannot be read.
    """
    by_dataset: dict[str, dict[str, ErrorAnalysis]] = {}
    for label, analysis in analyses:
        by_dataset.setdefault(analysis.dataset, {})[label] = analysis
    sections = []
    for dataset, own in by_dataset.items():
        examples = []
        for label, analysis in own.items():
            groups = [
                (GROUPS[group], _inline_all(pictures, problems))
                for group, pictures in analysis.pictures.items()
                if pictures
            ]
            examples.append((label if len(own) > 1 else "", groups, analysis.suspects))
        sections.append(
            {
                "dataset": dataset,
                "extent": [
                    (label, a.num_analyzed, a.num_images, f"{a.summary.ap50:.1f}") for label, a in own.items()
                ],
                "figures": figures({label: a.summary for label, a in own.items()}),
                "examples": examples,
            }
        )
    return sections


def _inline_all(pictures: list[tuple[Path, str]], problems: list[str]) -> list[tuple[str, str]]:
    inlined = []
    for file, note in pictures:
        try:
            inlined.append((note, inline_picture(file)))
        except Exception as error:  # damaged files make Pillow raise nearly anything
            problems.append(f"{file.name} is no picture ({type(error).__name__}: {error}).")
    return inlined
