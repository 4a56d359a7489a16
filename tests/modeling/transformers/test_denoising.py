"""Contrastive denoising: intervals and rates of the noise, groups, padding, the mask cell by cell."""

import pytest
import torch

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers.denoising import denoising_mask, make_denoising_queries

CPU = torch.device("cpu")


def batch(counts, *, box=(0.5, 0.5, 0.2, 0.1), label=3):
    """Images with the same object ``counts[i]`` times, padded as ``BatchTargets`` says."""
    most = max(counts)
    present = torch.arange(most) < torch.tensor(counts)[:, None]
    return BatchTargets(
        labels=torch.where(present, label, 0),
        boxes=torch.where(present[..., None], torch.tensor(box), torch.tensor([0.5, 0.5, 1.0, 1.0])),
        counts=counts,
    )


def make(targets, *, num_queries=100, label_noise=0.0, box_noise=0.0, num_classes=10):
    torch.manual_seed(0)
    return make_denoising_queries(
        targets,
        num_queries=num_queries,
        label_noise=label_noise,
        box_noise=box_noise,
        num_classes=num_classes,
    )


def test_order_of_a_group_by_hand():
    targets = BatchTargets(
        labels=torch.tensor([[4, 5], [6, 0]]),
        boxes=torch.tensor([[[0.2, 0.3, 0.1, 0.2], [0.7, 0.6, 0.3, 0.4]], [[0.5] * 4, [0.5, 0.5, 1, 1]]]),
        counts=[2, 1],
    )
    queries = make(targets, num_queries=9)  # two groups of four
    assert (queries.num_groups, queries.group_size) == (2, 4)
    assert queries.target.tolist() == [[0, 1, 0, 1] * 2] * 2
    assert queries.positive.tolist() == [[True, True, False, False] * 2] * 2
    assert queries.valid.tolist() == [[True] * 8, [True, False] * 4]
    # Without noise, labels and boxes are those of the objects.
    assert queries.labels.tolist() == [[4, 5] * 4, [6, 0] * 4]
    torch.testing.assert_close(queries.boxes, targets.boxes.repeat(1, 4, 1))
    assert (queries.labels.dtype, queries.target.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize(
    ("num_queries", "counts", "num_groups"),
    [(100, [1], 50), (100, [7, 3], 7), (100, [50], 1), (100, [51], 1), (1, [2], 1), (200, [0, 10], 10)],
)
def test_as_many_groups_as_fit_but_at_least_one(num_queries, counts, num_groups):
    queries = make(batch(counts), num_queries=num_queries)
    assert queries.num_groups == num_groups
    assert queries.boxes.shape == (len(counts), num_groups * 2 * max(counts), 4)


def test_nothing_to_denoise():
    assert make(batch([0, 0])) is None
    assert make(batch([2]), num_queries=0) is None


def test_an_image_without_objects_has_no_valid_query():
    queries = make(batch([0, 3, 1]), num_queries=12, box_noise=1.0, label_noise=1.0)
    assert queries.valid.sum(dim=1).tolist() == [0, 12, 4]
    valid_targets = [set(queries.target[i][queries.valid[i]].tolist()) for i in range(3)]
    assert valid_targets == [set(), {0, 1, 2}, {0}]
    assert ((queries.boxes >= 0) & (queries.boxes <= 1)).all()


@pytest.mark.parametrize("box_noise", [0.1, 0.4])
def test_sides_move_within_their_intervals(box_noise):
    # Half sizes are 0.1 and 0.05, far from the image's border; sides do not pass each other.
    queries = make(batch([1]), num_queries=20000, box_noise=box_noise)
    moves = cxcywh_to_xyxy(queries.boxes[0]) - torch.tensor([0.4, 0.45, 0.6, 0.55])
    shares = moves / torch.tensor([0.1, 0.05, 0.1, 0.05]) / box_noise
    for is_positive, (low, high) in ((True, (0, 1)), (False, (1, 2))):
        chosen = shares[queries.positive[0] == is_positive]
        distances = chosen.abs()
        assert low - 1e-3 < distances.min() < low + 0.01
        assert high - 0.01 < distances.max() < high + 1e-3
        assert (distances.mean(dim=0) - (low + 0.5)).abs().max() < 0.02  # uniform
        assert ((chosen > 0).float().mean(dim=0) - 0.5).abs().max() < 0.02  # both ways


def test_sides_move_independently():
    queries = make(batch([1]), num_queries=20000, box_noise=0.4)
    moves = (cxcywh_to_xyxy(queries.boxes[0]) - torch.tensor([0.4, 0.45, 0.6, 0.55]))[queries.positive[0]]
    correlations = torch.corrcoef(moves.T) - torch.eye(4)
    assert correlations.abs().max() < 0.05
    # No two groups have the same noise.
    assert len(moves.unique(dim=0)) == len(moves)


def test_boxes_are_clipped_and_never_turn_inside_out():
    queries = make(batch([1], box=(0.1, 0.5, 0.2, 1.0)), num_queries=2000, box_noise=1.0)
    corners = cxcywh_to_xyxy(queries.boxes[0])
    assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    assert (queries.boxes[..., 2:] >= 0).all()
    positive, negative = queries.boxes[queries.positive], queries.boxes[~queries.positive]
    assert (positive[:, 2:] > 0).all()
    # Two negative sides that both move inwards, by 1 to 2 half sizes each, pass each other: every fourth time.
    assert 0.2 < (negative[:, 2] == 0).float().mean() < 0.3


def test_label_noise_replaces_half_its_share_by_any_class():
    queries = make(batch([10]), num_queries=20000, label_noise=0.5, num_classes=5)
    # A quarter is replaced, a fifth of these by the same class.
    changed = queries.labels != 3
    assert 0.19 < changed.float().mean() < 0.21
    counts = queries.labels[changed].bincount(minlength=5).float()
    assert counts[3] == 0 and len(counts) == 5
    assert (counts[[0, 1, 2, 4]] / counts.sum() - 0.25).abs().max() < 0.03
    # Positives and negatives alike.
    shares = [changed[queries.positive].float().mean(), changed[~queries.positive].float().mean()]
    assert abs(shares[0] - shares[1]) < 0.02


def test_targets_stay_as_they_are():
    targets = batch([2, 1])
    labels, boxes = targets.labels.clone(), targets.boxes.clone()
    make(targets, box_noise=1.0, label_noise=1.0)
    assert torch.equal(targets.labels, labels) and torch.equal(targets.boxes, boxes)


def test_mask_cell_by_cell():
    # Two groups of two (a, b), then three matching queries (m); x: must not attend.
    rows = """
        . . x x . . .
        . . x x . . .
        x x . . . . .
        x x . . . . .
        x x x x . . .
        x x x x . . .
        x x x x . . .
    """
    expected = [[cell == "x" for cell in row.split()] for row in rows.strip().splitlines()]
    assert denoising_mask(4, 2, 3, CPU).tolist() == expected


def test_mask_keeps_that_of_the_matching_queries():
    matching = torch.tensor([[False, True], [True, False]])
    mask = denoising_mask(2, 2, 2, CPU, matching_mask=matching)
    assert torch.equal(mask[2:, 2:], matching)
    assert not mask[:2].any()
    assert mask[2:, :2].all()


def test_mask_fits_the_queries():
    queries = make(batch([3, 1]), num_queries=13)
    mask = denoising_mask(queries.labels.shape[1], queries.group_size, 4, CPU)
    assert mask.shape == (16, 16)
    assert not mask.all(dim=1).any()  # everyone sees somebody
    with pytest.raises(ValueError, match="7 denoising queries are not groups of 2"):
        denoising_mask(7, 2, 4, CPU)
