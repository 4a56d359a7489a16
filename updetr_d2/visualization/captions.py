"""Places for captions of boxes in a picture, so that none covers another."""

from collections.abc import Iterator, Sequence

import numpy as np

Place = tuple[float, float, float, float]


def place_captions(
    boxes: np.ndarray, sizes: Sequence[tuple[float, float]], *, width: float, height: float
) -> list[Place | None]:
    """A place at its box for each caption: above, below, beside or inside it, wherever nothing is yet.

    Args:
        boxes: ``[N, 4]`` XYXY in px; earlier ones choose first.
        sizes: width and height of each caption in px.
        width, height: of the picture in px, which no caption leaves.

    Returns:
        XYXY of each caption; None for those that there is no room for.
    """
    taken: list[Place] = []
    places: list[Place | None] = []
    for box, size in zip(boxes.tolist(), sizes):
        free = (
            place
            for place in _candidates(box, size, width=width, height=height)
            if not any(_intersect(place, other) for other in taken)
        )
        place = next(free, None)
        places.append(place)
        if place is not None:
            taken.append(place)
    return places


def _candidates(
    box: Sequence[float], size: tuple[float, float], *, width: float, height: float
) -> Iterator[Place]:
    """Places inside the picture, the best first; corners outside of it are moved in."""
    x0, y0, x1, y1 = box
    w, h = size
    if w > width or h > height:
        return
    for x, y in (
        *((x0, y0 - h), (x0, y1), (x0, y0), (x0, y1 - h)),
        *((x1 - w, y0 - h), (x1 - w, y1), (x1 - w, y0), (x1 - w, y1 - h)),
        *((x1, y0), (x1, y1 - h), (x0 - w, y0), (x0 - w, y1 - h)),
    ):
        left, top = min(max(x, 0.0), width - w), min(max(y, 0.0), height - h)
        yield left, top, left + w, top + h


def _intersect(a: Place, b: Place) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
