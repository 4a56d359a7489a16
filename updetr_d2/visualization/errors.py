"""What a detector does wrong, drawn: boxes by their kind of error, precision and recall, confusion, costs."""

import functools
from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw, ImageFont

from updetr_d2.visualization.captions import place_captions
from updetr_d2.visualization.curves import DPI, PANEL_SIZE, new_figure

# Colors of boxes by what they are; kinds that are none of these are gray.
BOX_COLORS = {
    "right": "#22c55e",
    "localization": "#f59e0b",
    "class": "#d946ef",
    "duplicate": "#38bdf8",
    "background": "#ef4444",
    "both": "#9ca3af",
    "missed": "#ffffff",
}
_OTHER_COLOR = "#9ca3af"
_PICTURE_SIDE = 640  # px of the longer side
_FONT_SIZE = 13  # px
_DASH = 7  # px
_PAD = 2  # px around the text of a caption
# Of more classes, the most confused are shown, and the curves of those with the lowest and the highest AP.
_MOST_CLASSES = 30
_MOST_CURVES = 10


def plot_precision(curves: Mapping[str, np.ndarray]) -> matplotlib.figure.Figure:
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


def plot_class_precision(curves: Mapping[str, np.ndarray]) -> matplotlib.figure.Figure:
    """Precision against recall of each class; of many, of the lowest and the highest.

    Args:
        curves: class -> ``[101]`` precisions at recalls from 0 to 1.
    """
    figure, (axes,) = new_figure()
    names = sorted(curves, key=lambda name: -float(curves[name].mean()))
    if len(names) > _MOST_CURVES:
        names = names[: _MOST_CURVES // 2] + names[-_MOST_CURVES // 2 :]
    for name in names:
        label = f"{name} (AP50 {100 * curves[name].mean():.0f})"
        axes.plot(np.linspace(0, 1, len(curves[name])), curves[name], label=label)
    axes.set(xlabel="recall", ylabel="precision (IoU 0.5)", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def plot_confusion(matrix: np.ndarray, names: Sequence[str]) -> matplotlib.figure.Figure:
    """The counts of true (rows) and predicted classes (columns), colored by their share of the row.

    Args:
        matrix: ``[K + 1, K + 1]``; the last row is background, the last column missed objects. Of more than 30
            classes those are drawn that are confused most.
        names: of the K classes.
    """
    matrix, names = most_confused(matrix, names)
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
    for row, column in np.ndindex(*matrix.shape):
        color = "white" if shares[row, column] > 0.6 else "black"
        text = str(matrix[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figure


def most_confused(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The rows and columns of at most 30 classes, in their order: those with the most objects of or as others."""
    if len(names) <= _MOST_CLASSES:
        return matrix, list(names)
    between = matrix[:-1, :-1] - np.diag(np.diag(matrix)[:-1])
    confused = between.sum(axis=0) + between.sum(axis=1)
    chosen = np.sort(np.argsort(-confused, kind="stable")[:_MOST_CLASSES])
    kept = [*chosen.tolist(), len(names)]
    return matrix[np.ix_(kept, kept)], [names[i] for i in chosen]


def plot_costs(costs: Mapping[str, Mapping[str, float]]) -> matplotlib.figure.Figure:
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


def draw_errors(
    image: np.ndarray,
    *,
    boxes: np.ndarray,
    captions: Sequence[str],
    kinds: Sequence[str],
    true_boxes: np.ndarray,
    true_captions: Sequence[str],
    missed: np.ndarray,
) -> np.ndarray:
    """The image with predictions colored by what they are, and true boxes dashed, thick where they are missed.

    Captions do not cover each other: those of errors come first, and where there is no room there is none.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        boxes: ``[P, 4]`` XYXY in px.
        captions: class and score of each.
        kinds: of each, a key of :data:`BOX_COLORS`.
        true_boxes: ``[G, 4]`` XYXY.
        true_captions: class of each.
        missed: ``[G]``, whether it was not found.

    Returns:
        RGB uint8 ``[h, w, 3]`` of the proportions of ``image``, whose longer side is 640 px.
    """
    height, width = image.shape[:2]
    scale = _PICTURE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for box, is_missed in zip(true_boxes * scale, missed):
        if is_missed:
            draw.rectangle(tuple(_ordered(box)), outline="black", width=4)
        _dashed(draw, box, width=3 if is_missed else 1)
    order = sorted(range(len(boxes)), key=lambda i: (kinds[i] != "right", -i))  # errors on top
    for i in order:
        color = BOX_COLORS.get(kinds[i], _OTHER_COLOR)
        draw.rectangle(tuple(_ordered(boxes[i] * scale)), outline=color, width=3)
    labels = [
        (true_boxes[i], f"missed: {true_captions[i]}", BOX_COLORS["missed"]) for i in np.flatnonzero(missed)
    ]
    for i in reversed(order):
        text = captions[i] if kinds[i] == "right" else f"{captions[i]} {kinds[i]}"
        labels.append((boxes[i], text, BOX_COLORS.get(kinds[i], _OTHER_COLOR)))
    _write_captions(draw, labels, scale=scale)
    return np.array(picture)


def _write_captions(
    draw: ImageDraw.ImageDraw, labels: Sequence[tuple[np.ndarray, str, str]], *, scale: float
) -> None:
    """Box in px of the image, text and color of each."""
    if not labels:
        return
    font = caption_font()
    sizes = [(font.getlength(text) + 2 * _PAD, _FONT_SIZE + 2 * _PAD) for _, text, _ in labels]
    boxes = np.array([_ordered(box * scale) for box, _, _ in labels])
    places = place_captions(boxes, sizes, width=draw.im.size[0], height=draw.im.size[1])
    for place, (_, text, color) in zip(places, labels):
        if place is not None:
            draw.rectangle(place, fill=color)
            draw.text((place[0] + _PAD, place[1] + _PAD), text, fill="black", font=font, anchor="la")


def _ordered(box: np.ndarray) -> list[float]:
    """XYXY with corners in order, as Pillow wants them."""
    return [
        *np.minimum(box[:2], box[2:]).tolist(),
        *np.maximum(box[:2], box[2:]).tolist(),
    ]


def _dashed(draw: ImageDraw.ImageDraw, box: np.ndarray, *, width: int) -> None:
    x0, y0, x1, y1 = _ordered(box)
    for x in np.arange(x0, x1, 2 * _DASH).tolist():
        for y in (y0, y1):
            draw.line((x, y, min(x + _DASH, x1), y), fill=BOX_COLORS["missed"], width=width)
    for y in np.arange(y0, y1, 2 * _DASH).tolist():
        for x in (x0, x1):
            draw.line((x, y, x, min(y + _DASH, y1)), fill=BOX_COLORS["missed"], width=width)


@functools.cache
def caption_font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, which has the letters of more languages than Pillow's own."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _FONT_SIZE)
