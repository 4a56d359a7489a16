"""Pictures of what a model is given and what it finds."""

import os
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.typing import ColorType
from PIL import Image

DPI = 100


def draw_query_patches(
    image: np.ndarray,
    patches: np.ndarray,
    true_boxes: np.ndarray | None,
    predicted_boxes: np.ndarray,
    scores: np.ndarray,
) -> np.ndarray:
    """The image with true (dashed) and predicted (solid) boxes, beside it the query patches in their colors.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        patches: RGB uint8 ``[M, h, w, 3]``.
        true_boxes: ``[M, 4]`` XYXY in the pixels of ``image``; None where they are unknown.
        predicted_boxes: ``[M, 4]`` likewise; a patch whose box is NaN was not found.
        scores: ``[M]`` confidence of the predictions, in [0, 1].

    Returns:
        RGB uint8 ``[h', w', 3]``.
    """
    num_patches = len(patches)
    colors = patch_colors(num_patches)
    titles = [f"p {score:.2f}" for score in scores]
    if true_boxes is not None:
        ious = matched_pairwise_iou(*(Boxes(np.asarray(b)) for b in (true_boxes, predicted_boxes)))
        titles = [f"IoU {iou:.2f}  {title}" for iou, title in zip(ious.tolist(), titles)]
    columns = max(2, int(np.ceil(np.sqrt(num_patches / 1.5))))
    rows = int(np.ceil(num_patches / columns))
    height = 5.0
    image_width = height * image.shape[1] / image.shape[0]
    patch_width = height / max(rows, 3) * columns * 0.85
    figure = matplotlib.figure.Figure(figsize=(image_width + patch_width, height), dpi=DPI)
    left, right = figure.subfigures(1, 2, width_ratios=(image_width, patch_width))

    axes = left.add_axes((0.01, 0.02, 0.98, 0.96))
    axes.imshow(image)
    axes.axis("off")
    for color, box in zip(colors, true_boxes if true_boxes is not None else ()):
        add_box(axes, box, color, linestyle="--", linewidth=1.5)
    for color, box in zip(colors, predicted_boxes):
        add_box(axes, box, color, linestyle="-", linewidth=2.5)

    grid = right.subplots(max(rows, 3), columns, squeeze=False).ravel()
    right.subplots_adjust(left=0.03, right=0.97, bottom=0.02, top=0.93, wspace=0.08, hspace=0.25)
    for cell in grid:
        cell.axis("off")
    for cell, patch, color, title in zip(grid, patches, colors, titles):
        cell.imshow(patch)
        add_box(cell, (0, 0, patch.shape[1] - 1, patch.shape[0] - 1), color, linewidth=4)
        cell.set_title(title, fontsize=7, pad=2)
    return pixels_of(figure)


def draw_query_patch_sample(sample: dict, instances: Instances, input_format: str) -> np.ndarray:
    """:func:`draw_query_patches` for a sample of pre-training and the model's output on it.

    Args:
        sample: ``image`` [3, H, W], ``patches`` [m, 3, h, w], ``instances.gt_boxes`` in the pixels of ``image``.
        instances: predictions in original pixels, the best query of each patch first.
        input_format: "RGB" or "BGR", of the sample.

    Returns:
        RGB uint8 ``[h', w', 3]``.
    """
    image, patches = (to_rgb(sample[key], input_format) for key in ("image", "patches"))
    best = instances[: len(patches)].to("cpu")
    boxes = best.pred_boxes.clone()
    boxes.scale(image.shape[1] / best.image_size[1], image.shape[0] / best.image_size[0])
    true_boxes = sample["instances"].gt_boxes.tensor.numpy()
    return draw_query_patches(image, patches, true_boxes, boxes.tensor.numpy(), best.scores.numpy())


def to_rgb(images: torch.Tensor, input_format: str) -> np.ndarray:
    """Pictures ``[..., H, W, 3]`` of a sample's ``[..., 3, H, W]`` in ``INPUT.FORMAT``, "RGB" or "BGR"."""
    pictures = images.movedim(-3, -1).numpy()
    return pictures if input_format == "RGB" else pictures[..., ::-1]


def draw_patch_guesses(
    image: np.ndarray, true_box: np.ndarray | None, boxes: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """The image with where one query patch was cut from (dashed) and where a model thinks it is (solid).

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        true_box: XYXY in the pixels of ``image``; None where it is unknown.
        boxes: ``[Q, 4]`` likewise, the model's first guess first; it is drawn thickest.
        scores: ``[Q]`` confidence of the guesses, in [0, 1].

    Returns:
        RGB uint8 ``[h', w', 3]`` of the proportions of ``image``.
    """
    height, width = image.shape[:2]
    size = 7.0 / max(height, width)
    figure = matplotlib.figure.Figure(figsize=(width * size, height * size), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, extent=(0, width, height, 0))
    axes.axis("off")
    colors = patch_colors(len(boxes))
    for i in reversed(range(len(boxes))):  # the first guess on top
        first = i == 0
        add_box(axes, boxes[i], colors[i], linewidth=4 if first else 2, alpha=1.0 if first else 0.8)
        x0, y0 = np.clip(boxes[i][:2], 0, (width - 1, height - 1))
        axes.text(
            x0,
            y0,
            f"{i + 1}: {scores[i]:.2f}",
            fontsize=13 if first else 10,
            color="white",
            verticalalignment="top",
            bbox={"facecolor": colors[i], "edgecolor": "none", "alpha": 0.85, "pad": 2},
        )
    if true_box is not None:
        add_box(axes, true_box, "black", linewidth=3.5)
        add_box(axes, true_box, "white", linestyle="--", linewidth=2)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return pixels_of(figure)


def draw_proposals(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    true_boxes: np.ndarray | None = None,
) -> np.ndarray:
    """The image with numbered boxes, the first on top and thickest, and, dashed, those of labels.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        boxes: ``[N, 4]`` XYXY in the pixels of ``image``, the best first.
        clusters: ``[N]`` ids to write beside the numbers, or None.
        true_boxes: ``[T, 4]``, or None where they are unknown.

    Returns:
        RGB uint8 ``[h', w', 3]`` of the proportions of ``image``.
    """
    height, width = image.shape[:2]
    size = 6.0 / max(height, width)
    figure = matplotlib.figure.Figure(figsize=(width * size, height * size), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, extent=(0, width, height, 0))
    axes.axis("off")
    colors = patch_colors(len(boxes))
    for i in reversed(range(len(boxes))):
        add_box(axes, boxes[i], colors[i], linewidth=3.5 if i < 3 else 1.5)
        label = f"{i + 1}" if clusters is None else f"{i + 1}: {clusters[i]}"
        x0, y0 = boxes[i][:2]
        axes.text(x0, y0, label, fontsize=8, color="white", verticalalignment="top").set_bbox(
            {"facecolor": colors[i], "edgecolor": "none", "alpha": 0.85, "pad": 1}
        )
    for box in true_boxes if true_boxes is not None else ():
        add_box(axes, box, "white", linestyle="--", linewidth=1.5)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return pixels_of(figure)


def patch_colors(count: int) -> np.ndarray:
    """``[count, 3]`` RGB colors in [0, 1] that are told apart easily."""
    hues = matplotlib.colormaps["hsv"](np.arange(count) / max(count, 1))[:, :3]
    return hues * np.where(np.arange(count) % 2, 0.75, 1.0)[:, None]


def save_picture(picture: np.ndarray, path: str) -> None:
    """Write an RGB uint8 picture ``[H, W, 3]`` as PNG, making its folder."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(picture).save(path)


def pixels_of(figure: matplotlib.figure.Figure) -> np.ndarray:
    """The drawn figure, RGB uint8 ``[h, w, 3]``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def add_box(
    axes: Axes, box: Sequence[float] | np.ndarray, color: ColorType | np.ndarray, **style: Any
) -> None:
    """Draw the frame of a box (XYXY) in any of matplotlib's ways to name a color."""
    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, **style))
