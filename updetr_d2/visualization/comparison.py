"""Figures of a comparison of detectors: curves over labels, precision and recall, confusion, errors, boxes."""

from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from updetr_d2.visualization.boxes import add_box, pixels_of
from updetr_d2.visualization.curves import DPI, PANEL_SIZE

# Colors of boxes by what they are; those of TIDE's kinds that are none of these are wrong in another way.
BOX_COLORS = {
    "right": "#22c55e",
    "localization": "#f59e0b",
    "class": "#d946ef",
    "duplicate": "#38bdf8",
    "background": "#ef4444",
    "both": "#ef4444",
    "missed": "#ffffff",
}
_PICTURE_INCHES = 4.0


def new_figure(
    columns: int = 1, *, height: float = PANEL_SIZE[1]
) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """A figure with panels in a row."""
    figure = matplotlib.figure.Figure(
        figsize=(PANEL_SIZE[0] * columns, height), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False).ravel())


def plot_over_labels(
    results: Mapping[str, Mapping[int, Sequence[float]]], *, metric: str
) -> matplotlib.figure.Figure:
    """Mean and range over seeds against the number of labelled images.

    Args:
        results: label -> number of images -> values.
        metric: name of the values.

    Returns:
        the figure; with one number of images, a point for each seed instead.
    """
    if len({count for by_count in results.values() for count in by_count}) == 1:
        return _plot_seeds(results, metric=metric)
    figure, (axes,) = new_figure()
    for label, by_count in results.items():
        counts = sorted(count for count, values in by_count.items() if len(values))
        means = [float(np.mean(by_count[count])) for count in counts]
        low = [mean - min(by_count[count]) for count, mean in zip(counts, means)]
        high = [max(by_count[count]) - mean for count, mean in zip(counts, means)]
        axes.errorbar(counts, means, yerr=[low, high], marker="o", markersize=4, capsize=3, label=label)
    axes.set(xlabel="labelled images", ylabel=f"{metric} (mean, lowest, highest)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _plot_seeds(
    results: Mapping[str, Mapping[int, Sequence[float]]], *, metric: str
) -> matplotlib.figure.Figure:
    """A point for each seed where there is one number of labelled images only."""
    figure, (axes,) = new_figure(height=1.2 + 0.45 * len(results))
    for place, by_count in enumerate(results.values()):
        for values in filter(len, by_count.values()):
            axes.plot(values, [place] * len(values), "o", alpha=0.7)
            axes.plot([float(np.mean(values))] * len(values), [place] * len(values), "|k", markersize=16)
    axes.set_yticks(range(len(results)), list(results))
    axes.set(
        xlabel=f"{metric}, a point for each seed; line: mean", xlim=(0, None), ylim=(len(results) - 0.5, -0.5)
    )
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_precision(curves: dict[str, np.ndarray]) -> matplotlib.figure.Figure:
    """Precision against recall.

    Args:
        curves: label -> ``[101]`` precisions at recalls from 0 to 1.
    """
    figure, (axes,) = new_figure()
    for label, precision in curves.items():
        axes.plot(np.linspace(0, 1, len(precision)), precision, label=label)
    axes.set(xlabel="recall", ylabel="precision (IoU 0.5, mean of classes)", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_confusion(matrix: np.ndarray, names: Sequence[str]) -> matplotlib.figure.Figure:
    """The counts of true (rows) and predicted classes (columns), colored by their share of the row.

    Args:
        matrix: ``[K + 1, K + 1]``; the last row is background, the last column missed objects.
        names: of the K classes.
    """
    size = min(14.0, max(PANEL_SIZE[1], 0.45 * len(matrix) + 1.5))
    figure = matplotlib.figure.Figure(figsize=(size * 1.15, size), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(matrix))
    axes.set_xticks(places, [*names, "missed"], rotation=45, ha="right")
    axes.set_yticks(places, [*names, "background"])
    axes.set(xlabel="found as", ylabel="is")
    if len(matrix) <= 30:
        for row, column in np.ndindex(*matrix.shape):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(
                column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8
            )
    return figure


def plot_costs(costs: dict[str, dict[str, float]]) -> matplotlib.figure.Figure:
    """What each kind of error costs.

    Args:
        costs: label -> kind -> AP50 that mending it would add.
    """
    figure, (axes,) = new_figure()
    kinds = list(next(iter(costs.values())))
    width = 0.8 / len(costs)
    for i, (label, by_kind) in enumerate(costs.items()):
        places = np.arange(len(kinds)) + (i - (len(costs) - 1) / 2) * width
        axes.bar(places, [by_kind[kind] for kind in kinds], width, label=label)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="AP50 that mending it would add")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


def draw_right_and_wrong(
    image: np.ndarray,
    *,
    boxes: np.ndarray,
    captions: Sequence[str],
    kinds: Sequence[str],
    missed: np.ndarray,
) -> np.ndarray:
    """The image with predictions colored by what they are, and dashed what is missed.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        boxes: ``[P, 4]`` XYXY in px.
        captions: class and score of each.
        kinds: of each, a key of :data:`BOX_COLORS`.
        missed: ``[M, 4]`` XYXY of objects that were not found.

    Returns:
        RGB uint8 ``[h, w, 3]`` of the proportions of ``image``.
    """
    height, width = image.shape[:2]
    size = _PICTURE_INCHES / max(height, width)
    figure = matplotlib.figure.Figure(figsize=(width * size, height * size), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, extent=(0, width, height, 0))
    axes.axis("off")
    for box in missed:
        add_box(axes, box, "black", linewidth=2.5)
        add_box(axes, box, BOX_COLORS["missed"], linestyle="--", linewidth=1.5)
    for box, caption, kind in zip(boxes, captions, kinds):
        color = BOX_COLORS.get(kind, "#9ca3af")
        add_box(axes, box, color, linewidth=2)
        x, y = np.clip(box[:2], 0, (width - 1, height - 1))
        axes.text(
            x,
            y,
            caption if kind == "right" else f"{caption}, {kind}",
            fontsize=6,
            color="black",
            verticalalignment="top",
            bbox={"facecolor": color, "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )
    axes.set(xlim=(0, width), ylim=(height, 0))
    return pixels_of(figure)
