"""Boxes from features: the tree of regions against Ward's definition, objects before background."""

import numpy as np
import pytest
import torch

from updetr_d2.data.proposals.feature_boxes import boxes_of_features, joined_levels
from updetr_d2.data.proposals.regions import build_region_tree


def deviation(features, cells):
    """Sum of squared distances of cells from their mean."""
    values = np.array([features[cell] for cell in cells])
    return ((values - values.mean(axis=0)) ** 2).sum()


def merges_by_definition(features):
    """Costs of all merges and the sets of cells that they make: try every pair of neighbors, each time anew."""
    height, width = features.shape[:2]
    regions = [{(y, x)} for y in range(height) for x in range(width)]

    def adjacent(a, b):
        return any(abs(y - v) + abs(x - u) == 1 for y, x in a for v, u in b)

    merges = []
    while len(regions) > 1:
        pairs = [
            (deviation(features, a | b) - deviation(features, a) - deviation(features, b), i, j)
            for i, a in enumerate(regions)
            for j, b in enumerate(regions[:i])
            if adjacent(a, b)
        ]
        cost, i, j = min(pairs)
        merged = regions[i] | regions[j]
        regions = [each for k, each in enumerate(regions) if k not in (i, j)] + [merged]
        merges.append((cost, merged))
    return merges


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_merges_as_ward_says(seed):
    features = np.random.default_rng(seed).normal(size=(3, 4, 5))
    tree = build_region_tree(features)
    expected = merges_by_definition(features)
    np.testing.assert_allclose(tree.cost[12:], [cost for cost, _ in expected], rtol=1e-4)
    for region, (_, cells) in enumerate(expected, start=12):
        assert tree.num_cells[region] == len(cells)
        rows, columns = zip(*cells)
        box = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        np.testing.assert_array_equal(tree.boxes[region], box)
    assert tree.parent[-1] == -1
    assert (tree.parent[:-1] > np.arange(len(tree.parent) - 1)).all()


def test_objects_come_before_parts_of_the_background():
    torch.manual_seed(0)
    fine, coarse = torch.randn(6, 24, 32) * 0.3, torch.randn(12, 12, 16) * 0.3
    fine[:3, 4:10, 6:12] += 2
    coarse[:6, 2:5, 3:6] += 2
    fine[3:, 12:20, 20:28] -= 2
    boxes, scores = boxes_of_features([fine, coarse], width=320, height=240)
    expected = [[60, 40, 120, 100], [200, 120, 280, 200]]
    assert sorted(boxes[:2].tolist()) == expected
    assert (np.diff(scores) <= 0).all()


def test_every_level_counts_the_same_whatever_its_channels():
    torch.manual_seed(0)
    joined = joined_levels([torch.randn(4, 8, 8) * 100 + 5, torch.randn(40, 8, 8)])
    assert joined.shape == (44, 8, 8)
    power = joined.square().mean(dim=(1, 2))
    torch.testing.assert_close(power[:4].sum(), power[4:].sum(), rtol=0.01, atol=0)
    torch.testing.assert_close(joined.mean(dim=(1, 2)), torch.zeros(44), atol=1e-5, rtol=0)
