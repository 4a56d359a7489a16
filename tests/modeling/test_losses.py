"""Loss terms and metrics: small numbers by hand, and PyTorch's own functions layer by layer."""

import math

import pytest
import torch
from torch.nn import functional as F

from updetr_d2.modeling import losses


def test_classification_is_a_weighted_mean_within_each_layer():
    logits = torch.randn(3, 2, 5, 4)
    classes = torch.randint(4, (3, 2, 5))
    weights = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = [
        F.cross_entropy(logits[i].flatten(0, 1), classes[i].flatten(), weight=weights) for i in range(3)
    ]
    torch.testing.assert_close(losses.classification_loss(logits, classes, weights), torch.stack(expected))


def test_classification_by_hand():
    # One query of class 0 at even odds (log 2, weight 1), one "no object" at 3 : 1 (log 4/3, weight 0.1).
    logits = torch.tensor([[[[0.0, 0.0], [0.0, math.log(3)]]]])
    loss = losses.classification_loss(logits, torch.tensor([[[0, 1]]]), torch.tensor([1.0, 0.1]))
    assert float(loss) == pytest.approx((math.log(2) + 0.1 * math.log(4 / 3)) / 1.1)


def test_sum_per_layer_keeps_layers_without_pairs():
    sums = losses.sum_per_layer(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 4)
    assert sums.tolist() == [1.0, 0.0, 6.0, 0.0]


def test_box_losses_by_hand():
    # The same box moved by its width: L1 is 0.2; IoU 0 and nothing outside the union, so GIoU 0.
    boxes, targets = torch.tensor([[0.3, 0.5, 0.2, 0.4]]), torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    assert float(losses.box_l1_loss(boxes, targets)) == pytest.approx(0.2)
    assert float(losses.giou_loss(boxes, targets)) == pytest.approx(1.0, abs=1e-5)
    assert float(losses.giou_loss(boxes, boxes)) == pytest.approx(0.0, abs=1e-6)


def test_feature_reconstruction_is_two_minus_two_cosines_whatever_the_lengths():
    features, targets = torch.randn(6, 9), 7 * torch.randn(6, 9)
    torch.testing.assert_close(
        losses.feature_reconstruction_loss(features, targets),
        2 - 2 * F.cosine_similarity(features, targets),
    )


def test_class_error_by_hand():
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    assert float(losses.class_error(logits, torch.tensor([0, 1, 1, 1]))) == 25.0
    assert float(losses.class_error(logits[:0], torch.zeros(0, dtype=torch.int64))) == 100.0


def test_cardinality_error_by_hand():
    found, nothing = [5.0, 0.0], [0.0, 5.0]
    logits = torch.tensor([[found, found, nothing], [nothing, nothing, nothing]])
    # 2 found of 1, 0 found of 2.
    assert float(losses.cardinality_error(logits, torch.tensor([1, 2]))) == 1.5


def focal_by_hand(logit, positive):
    """One logit's focal loss with the usual α 0.25 and γ 2."""
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def test_focal_loss_by_hand():
    # Layer 0: one query of class 1, one "no object" (2). Layer 1: both "no object".
    logits = torch.tensor([[[[0.0, 2.0], [-3.0, 1.0]]], [[[0.5, -0.5], [4.0, 0.0]]]])
    loss = losses.sigmoid_focal_loss(logits, torch.tensor([[[1, 2]], [[2, 2]]]), 4.0)
    expected = [
        focal_by_hand(2.0, True) + sum(focal_by_hand(x, False) for x in (0.0, -3.0, 1.0)),
        sum(focal_by_hand(x, False) for x in (0.5, -0.5, 4.0, 0.0)),
    ]
    torch.testing.assert_close(loss, torch.tensor(expected) / 4)


def test_focal_cost_is_the_change_of_the_loss():
    logits = torch.randn(2, 3, 4, 5)
    labels = torch.randint(5, (3, 6))
    cost = losses.focal_class_cost(logits, labels)
    assert cost.shape == (2, 3, 4, 6)
    for layer, image, query, target in [(0, 0, 0, 0), (1, 2, 3, 5), (0, 1, 2, 4), (1, 0, 3, 1)]:
        logit = logits[layer, image, query, labels[image, target]].item()
        expected = focal_by_hand(logit, True) - focal_by_hand(logit, False)
        assert cost[layer, image, query, target].item() == pytest.approx(expected, abs=1e-5)


def test_focal_terms_are_finite_for_extreme_logits_and_in_bfloat16():
    logits = torch.tensor([[[[1e4, -1e4]]]], dtype=torch.bfloat16, requires_grad=True)
    loss = losses.sigmoid_focal_loss(logits, torch.tensor([[[1]]]), torch.tensor(1.0))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert losses.focal_class_cost(logits, torch.tensor([[0, 1]])).isfinite().all()
