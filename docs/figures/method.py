"""The method in one picture: what UP-DETR's pre-training does with an image, step by step."""

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from updetr_d2.visualization.boxes import DPI, add_box, patch_colors, pixels_of

_FORBIDDEN = "0.88"


def draw_method(
    image: np.ndarray,
    patches: np.ndarray,
    true_boxes: np.ndarray,
    *,
    query_mask: np.ndarray,
    predicted_boxes: np.ndarray,
    cost: np.ndarray,
    matched_queries: np.ndarray,
    matched_patches: np.ndarray,
) -> np.ndarray:
    """Six panels: patches, groups of queries, attention mask, predictions, matching cost, matches.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        patches: RGB uint8 ``[M, h, w, 3]``, as the model gets them.
        true_boxes: ``[M, 4]`` XYXY in the pixels of ``image``: where the patches were cut.
        query_mask: bool ``[N, N]``, True where a query does not attend to another; N is a multiple of M.
        predicted_boxes: ``[N, 4]`` XYXY likewise.
        cost: ``[N, M]`` of matching a query with a patch; NaN, left blank, where that must not be.
        matched_queries, matched_patches: ``[M]`` indices of the pairs that the matcher chooses.

    Returns:
        RGB uint8 ``[h', w', 3]``.
    """
    colors = patch_colors(len(patches))
    query_colors = colors.repeat(len(predicted_boxes) // len(patches), axis=0)
    figure = matplotlib.figure.Figure(figsize=(15, 9.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 3).ravel()

    _show_image(panels[0], image, "1  Random patches are cut from an image")
    for color, box in zip(colors, true_boxes):
        add_box(panels[0], box, color, linewidth=2.5, linestyle="--")
    _draw_groups(panels[1], patches, colors, len(query_mask) // len(patches))
    _draw_mask(panels[2], query_mask, query_colors)

    _show_image(panels[3], image, "4  Every query predicts a box and a score")
    for color, box in zip(query_colors, predicted_boxes):
        add_box(panels[3], box, color, linewidth=1.5, alpha=0.8)
    _draw_cost(panels[4], cost, colors, matched_queries, matched_patches)
    _show_image(panels[5], image, "6  The matched boxes are pulled to the patches")
    for query, patch in zip(matched_queries, matched_patches):
        _draw_match(panels[5], true_boxes[patch], predicted_boxes[query], colors[patch])
    return pixels_of(figure)


def _show_image(axes: Axes, image: np.ndarray, title: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set_title(title, fontsize=13)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")


def _draw_groups(axes: Axes, patches: np.ndarray, colors: np.ndarray, group_size: int) -> None:
    """A row for each patch: the patch, then the numbers of the object queries that it is added to."""
    axes.set_title("2  Each patch is added to a group of object queries", fontsize=13)
    for row, (patch, color) in enumerate(zip(patches, colors)):
        axes.imshow(patch, extent=(0, 0.9, row + 0.9, row))
        add_box(axes, (0, row, 0.9, row + 0.9), color, linewidth=3)
        axes.text(1.2, row + 0.45, "+", fontsize=16, ha="center", va="center")
        for i in range(group_size):
            left = 1.5 + 0.75 * i
            square = Rectangle((left, row + 0.15), 0.6, 0.6, facecolor=color, alpha=0.55, edgecolor=color)
            axes.add_patch(square)
            number = row * group_size + i + 1
            axes.text(left + 0.3, row + 0.45, str(number), fontsize=9, ha="center", va="center")
    axes.set(xlim=(-0.1, 1.5 + 0.75 * group_size), ylim=(len(patches), -0.1), aspect="equal")
    axes.axis("off")


def _draw_mask(axes: Axes, query_mask: np.ndarray, query_colors: np.ndarray) -> None:
    """Query times query: coloured where a query of the decoder sees another one."""
    picture = np.empty((*query_mask.shape, 4))
    picture[:] = to_rgba(_FORBIDDEN)
    rows, columns = np.nonzero(~query_mask)
    picture[rows, columns, :3] = 0.45 + 0.55 * query_colors[rows]
    axes.imshow(picture, extent=(0.5, len(query_mask) + 0.5, len(query_mask) + 0.5, 0.5))
    axes.set_title("3  In the decoder, queries see their own group only", fontsize=13)
    axes.set(xlabel="query that is seen", ylabel="query that looks")


def _draw_cost(
    axes: Axes, cost: np.ndarray, colors: np.ndarray, matched_queries: np.ndarray, matched_patches: np.ndarray
) -> None:
    """Query times patch: the darker, the cheaper; the cells that the matcher chooses are framed."""
    num_queries, num_patches = cost.shape
    extent = (0.5, num_queries + 0.5, num_patches + 0.5, 0.5)
    axes.imshow(cost.T, cmap="gray", aspect="auto", extent=extent)
    for query, patch in zip(matched_queries, matched_patches):
        add_box(axes, (query + 0.55, patch + 0.55, query + 1.45, patch + 1.45), colors[patch], linewidth=3.5)
    axes.set_title("5  The cheapest one-to-one matching is chosen", fontsize=13)
    axes.set(xlabel="query", ylabel="patch", yticks=range(1, num_patches + 1))
    for label, color in zip(axes.get_yticklabels(), colors):
        label.set(color=color, fontweight="bold")


def _draw_match(axes: Axes, true_box: np.ndarray, box: np.ndarray, color: np.ndarray) -> None:
    add_box(axes, true_box, color, linewidth=2, linestyle="--")
    add_box(axes, box, color, linewidth=2.5)
    centers = np.array([[b[0::2].mean(), b[1::2].mean()] for b in (box, true_box)])
    axes.annotate(
        "",
        xy=centers[1],
        xytext=centers[0],
        arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.5, "mutation_scale": 16},
    )
