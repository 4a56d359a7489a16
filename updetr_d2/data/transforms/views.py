"""Two views of one image: the map of coordinates between them, and what of a box can be seen in the second.

Boxes are XYXY in px. Everything is computed in double precision: a map goes from one resized image through the
original to another.
"""

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor


def map_between(first: T.TransformList, second: T.TransformList) -> Tensor:
    """The affine map from coordinates of one view to those of another of the same image.

    Args:
        first: made the first view; flips and resizes, which can be undone.
        second: made the second view; flips, resizes and crops.

    Returns:
        float64 ``[2, 3]``: a point (x, y, 1) of the first view times it is the point in the second.
    """
    undo = first.inverse()
    points = second.apply_coords(undo.apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])))
    origin, along_x, along_y = points
    return torch.from_numpy(np.stack([along_x - origin, along_y - origin, origin], axis=1))


def map_boxes(boxes: Tensor, mapping: Tensor) -> Tensor:
    """Boxes of the first view in the second, not clipped.

    Args:
        boxes: ``[n, 4]``.
        mapping: of :func:`map_between`, without rotation.

    Returns:
        float64 ``[n, 4]``
    """
    corners = boxes.double().reshape(-1, 2, 2)
    moved = corners @ mapping[:, :2].T + mapping[:, 2]
    return torch.cat((moved.amin(dim=1), moved.amax(dim=1)), dim=1)


def visible_share(boxes: Tensor, size: tuple[int, int], erased: Tensor) -> Tensor:
    """Share of each box that is inside of the image and not erased.

    Args:
        boxes: ``[n, 4]``, perhaps beyond the image.
        size: (height, width) of the image.
        erased: ``[r, 4]`` rectangles with whole numbers.

    Returns:
        float64 ``[n]`` in [0, 1]; 0 for boxes without area.
    """
    boxes = boxes.double()
    # The cells of the grid that all edges make: each is erased as a whole, or not at all.
    xs = torch.cat((erased[:, ::2].double().flatten(), torch.tensor([0.0, size[1]]))).unique()
    ys = torch.cat((erased[:, 1::2].double().flatten(), torch.tensor([0.0, size[0]]))).unique()
    seen = torch.ones(len(ys) - 1, len(xs) - 1, dtype=torch.float64)
    for x0, y0, x1, y1 in erased.double():
        rows = (ys[:-1] >= y0) & (ys[1:] <= y1)
        seen[rows[:, None] & (xs[:-1] >= x0) & (xs[1:] <= x1)] = 0
    widths = _overlap(xs, boxes[:, 0], boxes[:, 2])
    heights = _overlap(ys, boxes[:, 1], boxes[:, 3])
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    visible = torch.einsum("ny,yx,nx->n", heights, seen, widths)
    return torch.where(area > 0, visible / area.clamp(min=torch.finfo(area.dtype).tiny), 0.0)


def _overlap(edges: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Length ``[n, len(edges) - 1]`` that the intervals [low, high] have in common with those between edges."""
    return (torch.minimum(edges[1:], high[:, None]) - torch.maximum(edges[:-1], low[:, None])).clamp(min=0)
