"""Loss terms and metrics: small numbers by hand, and PyTorch's own functions layer by layer."""

import math

import pytest
import torch
from torch.nn import functional as F

from updetr_d2.modeling import losses
from updetr_d2.modeling.loss_terms import FocalClassLoss, SoftmaxClassLoss, untaught_queries
from updetr_d2.modeling.matcher import Matches
from updetr_d2.modeling.outputs import Outputs
from updetr_d2.modeling.targets import BatchTargets


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
    num_found = SoftmaxClassLoss(num_classes=1).num_predicted(logits)
    assert float(losses.cardinality_error(num_found, torch.tensor([1, 2]))) == 1.5


def test_a_sigmoid_above_one_half_is_a_predicted_object():
    logits = torch.tensor([[[-1.0, 0.5], [-1.0, -2.0], [3.0, 3.0]]])
    assert FocalClassLoss(num_classes=2).num_predicted(logits).tolist() == [2]


def test_untaught_queries_do_not_count():
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 3, 5, 4), torch.randint(4, (2, 3, 5))
    untaught = torch.rand(2, 3, 5) < 0.4
    weights = torch.tensor([1.0, 1.0, 1.0, 0.1])
    ignored = classes.masked_fill(untaught, -100)
    expected = [
        F.cross_entropy(logits[i].flatten(0, 1), ignored[i].flatten(), weight=weights) for i in range(2)
    ]
    found = losses.classification_loss(logits, classes, weights, untaught)
    torch.testing.assert_close(found, torch.stack(expected))
    assert losses.classification_loss(logits, classes, weights, untaught | True).tolist() == [0, 0]

    def alone(layer, image, query):
        at = (slice(layer, layer + 1), slice(image, image + 1), slice(query, query + 1))
        return losses.sigmoid_focal_loss(logits[at], classes[at], 7)

    found = losses.sigmoid_focal_loss(logits, classes, 7, untaught=untaught)
    for layer in range(2):
        taught = (~untaught[layer]).nonzero().tolist()
        assert float(found[layer]) == pytest.approx(float(sum(alone(layer, *at) for at in taught)), rel=1e-5)


class TestUntaughtQueries:
    """Two images, four queries each; query 0 of the first is matched with its only target."""

    boxes = torch.tensor(
        [
            [[0.2, 0.2, 0.2, 0.2], [0.22, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.5, 0.9, 0.1, 0.1]],
            [[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.76, 0.7, 0.2, 0.2], [0.85, 0.7, 0.2, 0.2]],
        ]
    )[None]

    def untaught(self, **options):
        targets = BatchTargets(
            labels=torch.zeros(2, 1, dtype=torch.int64),
            boxes=torch.tensor([[[0.2, 0.2, 0.2, 0.2]], [[0.5, 0.5, 1.0, 1.0]]]),
            counts=[1, 0],
            **options,
        )
        zero = torch.zeros(1, dtype=torch.int64)
        outputs = Outputs(torch.zeros(1, 2, 4, 3), self.boxes)
        found = untaught_queries(outputs, targets, Matches(zero, zero, zero, zero))
        return None if found is None else found[0].int().tolist()

    def test_all_queries_are_taught_by_default(self):
        assert self.untaught() is None

    def test_queries_on_uncertain_boxes(self):
        nothing = [0.0, 0, 0, 0]
        uncertain = torch.tensor([[[0.2, 0.2, 0.2, 0.2], nothing], [[0.7, 0.7, 0.2, 0.2], nothing]])
        # Of the second image, the third query has an IoU of 0.54, the last one of 0.14.
        assert self.untaught(uncertain=uncertain) == [[0, 1, 0, 0], [0, 1, 1, 0]]
        assert self.untaught(uncertain=torch.zeros(2, 0, 4)) == [[0] * 4, [0] * 4]

    def test_drop_loss(self):
        # The second image has no target, so nothing there is known to be background.
        assert self.untaught(drop_iou=0.01) == [[0, 0, 1, 1], [1, 1, 1, 1]]
