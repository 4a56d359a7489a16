"""Figures of a comparison of detectors: results over numbers of labels and seeds."""

from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np

from updetr_d2.visualization.curves import new_figure


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
    axes.set(xlabel=f"{metric} of each seed, and mean", ylim=(len(results) - 0.5, -0.5))
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])  # room for half a point
    axes.grid(axis="x", alpha=0.3)
    return figure
