"""A tree of regions of a feature map: neighbors merge, the most alike first, until one region is left.

Every region is a connected component of similar cells at some scale, so one tree holds the segmentations of all
thresholds. ``P`` cells, ``D`` channels, ``R`` = 2 P − 1 regions, the cells first and then in order of merging.
"""

import heapq
from dataclasses import dataclass

import numpy as np


@dataclass
class RegionTree:
    """All regions, the whole map last.

    Attributes:
        boxes: float64 ``[R, 4]``, XYXY in cells.
        num_cells: int64 ``[R]``.
        cost: float64 ``[R]``, increase of the squared deviation by which a region was merged of two; 0 for cells.
        parent: int64 ``[R]``, the region that a region became part of; −1 for the last.
    """

    boxes: np.ndarray
    num_cells: np.ndarray
    cost: np.ndarray
    parent: np.ndarray


def build_region_tree(features: np.ndarray) -> RegionTree:
    """Ward's clustering among neighbors: merge the two whose union adds least to the sum of squared deviations.

    Args:
        features: float ``[H, W, D]``.
    """
    height, width, channels = features.shape
    num_cells = height * width
    num_regions = 2 * num_cells - 1
    index = np.arange(num_cells).reshape(height, width)
    rows, columns = np.divmod(np.arange(num_cells), width)
    tree = RegionTree(
        boxes=np.zeros((num_regions, 4)),
        num_cells=np.ones(num_regions, np.int64),
        cost=np.zeros(num_regions),
        parent=np.full(num_regions, -1),
    )
    tree.boxes[:num_cells] = np.stack([columns, rows, columns + 1, rows + 1], axis=1)
    means = np.zeros((num_regions, channels), np.float32)
    means[:num_cells] = features.reshape(num_cells, channels)

    pairs = np.concatenate(
        [
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1),
            np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1),
        ]
    )
    neighbors: list[set[int]] = [set() for _ in range(num_regions)]
    for a, b in pairs.tolist():
        neighbors[a].add(b)
        neighbors[b].add(a)
    costs = np.square(means[pairs[:, 0]] - means[pairs[:, 1]]).sum(axis=1) / 2
    queue = [(cost, a, b) for cost, (a, b) in zip(costs.tolist(), pairs.tolist())]
    heapq.heapify(queue)

    for new in range(num_cells, num_regions):
        cost, a, b = heapq.heappop(queue)
        while tree.parent[a] >= 0 or tree.parent[b] >= 0:  # one of them is part of another by now
            cost, a, b = heapq.heappop(queue)
        tree.cost[new] = cost
        tree.parent[[a, b]] = new
        count_a, count_b = tree.num_cells[a], tree.num_cells[b]
        tree.num_cells[new] = count = count_a + count_b
        means[new] = (count_a * means[a] + count_b * means[b]) / count
        tree.boxes[new, :2] = np.minimum(tree.boxes[a, :2], tree.boxes[b, :2])
        tree.boxes[new, 2:] = np.maximum(tree.boxes[a, 2:], tree.boxes[b, 2:])
        around = (neighbors[a] | neighbors[b]) - {a, b}
        for each in around:
            neighbors[each] -= {a, b}
            neighbors[each].add(new)
        neighbors[new] = around
        neighbors[a] = neighbors[b] = set()
        others = np.fromiter(around, np.int64, len(around))
        distances = np.square(means[others] - means[new]).sum(axis=1)
        weights = tree.num_cells[others] * count / (tree.num_cells[others] + count)
        for distance, other in zip((distances * weights).tolist(), others.tolist()):
            heapq.heappush(queue, (distance, other, new))
    return tree
