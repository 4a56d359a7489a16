"""Clusters: groups of features that are far apart get ids of their own, however many features there are."""

import pytest
import torch

from updetr_d2.data.proposals.clusters import fit_clusters, outer_pixels


@pytest.mark.parametrize("num_features", [60, 9000])
def test_groups_are_found(num_features):
    """9000 features are more than a batch of k-means."""
    torch.manual_seed(0)
    directions = torch.eye(12)[:3] * 10
    group = torch.arange(num_features) % 3
    features = directions[group] + torch.randn(num_features, 12)
    clusters = fit_clusters(features, 3)
    ids = clusters.assign(features)
    pairs = set(zip(group.tolist(), ids.tolist()))
    assert len(pairs) == 3, "each group has one cluster, and each cluster one group"
    assert clusters.project(features).norm(dim=1).sub(1).abs().max() < 1e-5


def test_the_same_seed_gives_the_same_clusters():
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    first, second = (fit_clusters(features, 5, seed=3).assign(features) for _ in range(2))
    assert torch.equal(first, second)


def test_the_components_are_those_of_the_largest_variance():
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 9, 1, 1, 5, 1]
    )
    components = fit_clusters(features, 2, num_components=2).components
    assert components.abs().argmax(dim=1).tolist() == [1, 4]


def test_more_clusters_than_boxes_is_an_error():
    with pytest.raises(ValueError, match="5 clusters are more than there are boxes"):
        fit_clusters(torch.randn(4, 3), 5)


def test_pixels_of_a_box():
    assert outer_pixels([1.5, 2.0, 3.2, 2.1], width=10, height=10) == (1, 2, 4, 3)
    assert outer_pixels([9.9, 9.9, 10, 10], width=10, height=10) == (9, 9, 10, 10)
