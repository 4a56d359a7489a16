"""Hungarian matching: the best of all assignments, a loop-written cost, and inputs that break naive code."""

import itertools

import pytest
import torch
import torchvision
from detectron2.structures import Boxes, Instances
from helpers import random_instances, tiny_cfg
from scipy.optimize import linear_sum_assignment

from updetr_d2.modeling.matcher import HungarianMatcher, build_matcher
from updetr_d2.modeling.targets import BatchTargets

CPU = torch.device("cpu")


def predictions(layers, images, queries, classes=4):
    return torch.randn(layers, images, queries, classes + 1), torch.rand(layers, images, queries, 4)


def random_targets(*counts):
    return BatchTargets.from_instances([random_instances(60, 80, n) for n in counts], CPU)


def pair_cost(logits, box, label, target_box):
    """Cost of one query and one target, from semantics: 5 L1 − probability − 2 GIoU."""
    corners = torchvision.ops.box_convert(torch.stack((box, target_box)), "cxcywh", "xyxy")
    giou = torchvision.ops.generalized_box_iou(corners[:1], corners[1:])
    return float(5 * (box - target_box).abs().sum() - logits.softmax(0)[label] - 2 * giou)


def image_cost(logits, boxes, targets, image):
    return [
        [
            pair_cost(logits[q], boxes[q], targets.labels[image, t], targets.boxes[image, t])
            for t in range(targets.counts[image])
        ]
        for q in range(len(logits))
    ]


def pairs_of(matches, layer, image):
    here = (matches.layer == layer) & (matches.image == image)
    return list(zip(matches.query[here].tolist(), matches.target[here].tolist()))


def test_cost_equals_one_pair_at_a_time_and_stays_within_the_image():
    logits, boxes = predictions(3, 2, 6)
    targets = random_targets(4, 2)
    cost = HungarianMatcher().cost(logits, boxes, targets)
    assert cost.shape == (3, 2, 6, 4)
    for layer, image in itertools.product(range(3), range(2)):
        expected = image_cost(logits[layer, image], boxes[layer, image], targets, image)
        torch.testing.assert_close(
            cost[layer, image, :, : targets.counts[image]], torch.tensor(expected), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_total_cost_is_the_smallest_of_all_assignments(count):
    logits, boxes = predictions(1, 1, 5)
    targets = random_targets(count)
    cost = image_cost(logits[0, 0], boxes[0, 0], targets, 0)
    best = min(
        sum(cost[q][t] for t, q in enumerate(queries)) for queries in itertools.permutations(range(5), count)
    )
    found = pairs_of(HungarianMatcher()(logits, boxes, targets), 0, 0)
    assert sorted(t for _, t in found) == list(range(count))
    assert len({q for q, _ in found}) == count
    assert sum(cost[q][t] for q, t in found) == pytest.approx(best, abs=1e-4)


def test_layers_and_images_are_matched_by_themselves_in_order():
    logits, boxes = predictions(3, 4, 7)
    targets = random_targets(3, 0, 5, 1)
    matches = HungarianMatcher()(logits, boxes, targets)
    for layer, image in itertools.product(range(3), range(4)):
        cost = torch.tensor(image_cost(logits[layer, image], boxes[layer, image], targets, image))
        expected = linear_sum_assignment(cost.reshape(7, -1).numpy())
        assert pairs_of(matches, layer, image) == list(zip(*(x.tolist() for x in expected)))
    order = list(zip(matches.layer.tolist(), matches.image.tolist(), matches.query.tolist()))
    assert order == sorted(order)
    last = matches.last_layer_only(3)
    assert len(last.query) == 9
    assert set(last.layer.tolist()) == {2}
    assert set(last.image.tolist()) == {0, 2, 3}


def test_within_groups_each_target_gets_the_cheapest_query_of_its_group():
    matcher = HungarianMatcher()
    logits, boxes = predictions(layers=2, images=2, queries=12)
    targets = random_targets(4, 3)
    targets.group_size = 3
    matches = matcher(logits, boxes, targets)
    for layer, image in itertools.product(range(2), range(2)):
        costs = torch.tensor(image_cost(logits[layer, image], boxes[layer, image], targets, image))
        expected = [
            (3 * target + int(costs[3 * target : 3 * target + 3, target].argmin()), target)
            for target in range(targets.counts[image])
        ]
        assert pairs_of(matches, layer, image) == expected


def test_more_targets_than_queries_match_every_query_once():
    logits, boxes = predictions(2, 1, 3)
    matches = HungarianMatcher()(logits, boxes, random_targets(8))
    for layer in range(2):
        found = pairs_of(matches, layer, 0)
        assert [q for q, _ in found] == [0, 1, 2]
        assert len({t for _, t in found}) == 3


def test_no_targets_match_nothing():
    logits, boxes = predictions(2, 2, 3)
    matches = HungarianMatcher()(logits, boxes, random_targets(0, 0))
    for indices in (matches.layer, matches.image, matches.query, matches.target):
        assert indices.shape == (0,)
        assert indices.dtype == torch.int64


def test_boxes_without_area_are_matched_to_the_nearest():
    points = torch.tensor([[30.0, 30.0, 30.0, 30.0], [10.0, 20.0, 10.0, 40.0]])
    targets = BatchTargets.from_instances(
        [Instances((60, 80), gt_boxes=Boxes(points), gt_classes=torch.tensor([0, 1]))], CPU
    )
    boxes = torch.cat((torch.rand(1, 1, 4, 4), targets.boxes[None]), dim=2)
    matches = HungarianMatcher()(torch.zeros(1, 1, 6, 5), boxes, targets)
    assert pairs_of(matches, 0, 0) == [(4, 0), (5, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_matched_in_float32(dtype):
    logits, boxes = (x.to(dtype) for x in predictions(2, 2, 6))
    targets = random_targets(3, 4)
    matcher = HungarianMatcher()
    exact = matcher.cost(logits.float(), boxes.float(), targets)
    torch.testing.assert_close(matcher.cost(logits, boxes, targets), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matcher(logits, boxes, targets)
    expected = matcher(logits.float(), boxes.float(), targets)
    assert torch.equal(found.query, expected.query)
    assert torch.equal(found.target, expected.target)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        ("logits", "of: predicted class logits."),
        ("boxes", "of: predicted boxes."),
        ("targets", "of: target boxes."),
    ],
)
def test_error_names_the_quantity_that_is_not_finite(quantity, message, value):
    logits, boxes = predictions(2, 2, 4)
    targets = random_targets(2, 3)
    {"logits": logits, "boxes": boxes, "targets": targets.boxes[None]}[quantity][0, 1, 2, 0] = value
    with pytest.raises(FloatingPointError, match=message):
        HungarianMatcher()(logits, boxes, targets)


@pytest.mark.parametrize("key", ["COST_CLASS", "COST_BBOX", "COST_GIOU"])
def test_config_sets_each_weight(key):
    """With only one weight left, the cost is that term alone."""
    names = ("COST_CLASS", "COST_BBOX", "COST_GIOU")
    options = [x for name in names for x in (f"MODEL.MATCHER.{name}", 3.0 if name == key else 0.0)]
    matcher = build_matcher(tiny_cfg("DETR", *options))
    target = BatchTargets.from_instances(
        [
            Instances(
                (10, 10),
                gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]])),
                gt_classes=torch.tensor([2]),
            )
        ],
        CPU,
    )
    # A quarter of the image with even odds of 5 classes: L1 = 0.25 · 2 + 0.5 · 2, GIoU = 1/4.
    cost = matcher.cost(torch.zeros(1, 1, 1, 5), torch.tensor([[[[0.25, 0.25, 0.5, 0.5]]]]), target)
    expected = {"COST_CLASS": -3 * 0.2, "COST_BBOX": 3 * 1.5, "COST_GIOU": -3 * 0.25}
    assert float(cost) == pytest.approx(expected[key])


def test_all_weights_zero_is_an_error():
    with pytest.raises(ValueError, match="must not all be 0"):
        HungarianMatcher(cost_class=0, cost_bbox=0, cost_giou=0)
