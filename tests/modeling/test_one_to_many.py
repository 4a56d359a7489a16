"""One-to-many assignment against plain loops."""

import pytest
import torch
from torchvision.ops import box_iou

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy, pairwise_iou
from updetr_d2.modeling.one_to_many import IoUMatcher, match_centers
from updetr_d2.modeling.targets import BatchTargets
from updetr_d2.modeling.transformers.proposals import without_duplicates


def random_boxes(*shape):
    return torch.cat([torch.rand(*shape, 2), 0.05 + 0.4 * torch.rand(*shape, 2)], dim=-1)


def padded_targets(counts, *, group_size=None):
    size = max(counts)
    return BatchTargets(
        labels=torch.randint(0, 5, (len(counts), size)),
        boxes=random_boxes(len(counts), size),
        counts=list(counts),
        group_size=group_size,
    )


def as_set(matches):
    return set(zip(*(x.tolist() for x in (matches.layer, matches.image, matches.query, matches.target))))


def assigned_by_loops(boxes, targets, *, iou_threshold, max_per_target):
    pairs = set()
    for layer, layer_boxes in enumerate(boxes):
        for image, count in enumerate(targets.counts):
            overlaps = box_iou(
                cxcywh_to_xyxy(layer_boxes[image]), cxcywh_to_xyxy(targets.boxes[image, :count])
            )
            query_target = {}
            for target in range(count):
                ranking = sorted(range(len(overlaps)), key=lambda q: -overlaps[q, target])
                for query in ranking[:max_per_target]:
                    best = int(overlaps[query].argmax())
                    if best == target and overlaps[query, target] >= iou_threshold:
                        query_target[query] = target
            for target in range(count):
                query_target[int(overlaps[:, target].argmax())] = target
            pairs |= {(layer, image, query, target) for query, target in query_target.items()}
    return pairs


@pytest.mark.parametrize("max_per_target", [1, 3])
def test_queries_learn_what_they_overlap(max_per_target):
    torch.manual_seed(0)
    targets = padded_targets([2, 0, 3])
    boxes = random_boxes(2, 3, 40)
    boxes[1, 0, 5:15] = targets.boxes[0, 1] + 0.03 * torch.rand(10, 4)
    matches = IoUMatcher(iou_threshold=0.4, max_per_target=max_per_target)(boxes[..., :1], boxes, targets)
    expected = assigned_by_loops(boxes, targets, iou_threshold=0.4, max_per_target=max_per_target)
    assert as_set(matches) == expected
    per_target = torch.stack([matches.layer, matches.image, matches.target]).unique(
        dim=1, return_counts=True
    )[1]
    assert per_target.max() == max_per_target
    last = matches.last_layer_only(2)
    assert as_set(last) == {pair for pair in expected if pair[0] == 1}


def test_each_target_has_a_query_even_far_away():
    targets = padded_targets([3])
    boxes = torch.full((1, 1, 4, 4), 0.01)
    targets.boxes[0] = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.2, 0.1, 0.1], [0.5, 0.8, 0.1, 0.1]])
    boxes[0, 0, :3] = targets.boxes[0] + torch.tensor([0.09, 0, 0, 0])
    matches = IoUMatcher(iou_threshold=0.6)(boxes, boxes, targets)
    assert as_set(matches) == {(0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 2, 2)}


def test_queries_stay_in_their_group():
    torch.manual_seed(1)
    targets = padded_targets([2], group_size=3)
    boxes = random_boxes(1, 1, 6)
    boxes[0, 0, 0] = targets.boxes[0, 1]  # of the other target's group
    matches = IoUMatcher(iou_threshold=0.1)(boxes, boxes, targets)
    assert all(query // 3 == target for _, _, query, target in as_set(matches))
    assert matches.target.unique().tolist() == [0, 1]


def test_a_batch_without_objects():
    targets = BatchTargets(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 4), [0, 0])
    boxes = random_boxes(2, 2, 5)
    assert len(IoUMatcher()(boxes, boxes, targets).query) == 0
    assert len(match_centers(torch.rand(1, 7, 2), targets, radius=0.5).query) == 0


def test_boxes_that_are_no_numbers_are_refused():
    targets = padded_targets([1])
    boxes = random_boxes(1, 1, 3)
    boxes[0, 0, 1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="predicted boxes"):
        IoUMatcher()(boxes, boxes, targets)


@pytest.mark.parametrize(("argument", "value"), [("iou_threshold", 0.0), ("max_per_target", 0)])
def test_arguments_out_of_range(argument, value):
    with pytest.raises(ValueError, match=argument):
        IoUMatcher(**{argument: value})


def test_tokens_in_the_middle_learn_the_smallest_object():
    torch.manual_seed(0)
    targets = padded_targets([3, 1, 0])
    targets.boxes[0, 1] = torch.tensor([0.5, 0.5, 0.6, 0.6])
    targets.boxes[0, 2] = torch.tensor([0.5, 0.5, 0.2, 0.2])  # inside of the other
    targets.boxes[1, 0] = torch.tensor([0.999, 0.999, 0.001, 0.001])  # between tokens
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    centers = ((torch.stack([x, y], dim=-1) + 0.5) / 12).reshape(1, -1, 2)
    radius = 0.5
    expected = set()
    for image, count in enumerate(targets.counts):
        boxes = targets.boxes[image, :count].tolist()
        owner = {}
        for token, (px, py) in enumerate(centers[0].tolist()):
            inside = [
                (w * h, t)
                for t, (cx, cy, w, h) in enumerate(boxes)
                if abs(px - cx) <= radius * w / 2 and abs(py - cy) <= radius * h / 2
            ]
            if inside:
                owner[token] = min(inside)[1]
        for t, (cx, cy, w, h) in enumerate(boxes):
            if t not in owner.values():
                distances = [max(abs(px - cx) / w, abs(py - cy) / h) for px, py in centers[0].tolist()]
                owner[distances.index(min(distances))] = t
        expected |= {(0, image, token, target) for token, target in owner.items()}
    assert as_set(match_centers(centers, targets, radius=radius)) == expected


def test_pairwise_iou_is_torchvisions():
    torch.manual_seed(0)
    boxes1, boxes2 = cxcywh_to_xyxy(random_boxes(3, 6)), cxcywh_to_xyxy(random_boxes(3, 4))
    expected = torch.stack([box_iou(*pair) for pair in zip(boxes1, boxes2)])
    torch.testing.assert_close(pairwise_iou(boxes1, boxes2), expected)
    nothing = torch.zeros(1, 1, 4)
    assert pairwise_iou(nothing, nothing).item() == 0


def test_duplicates_come_after_all_others():
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])
    scores = torch.tensor([[1.0, 2.0, -3.0]])
    order = without_duplicates(scores, boxes, threshold=0.7).argsort(dim=1, descending=True)
    assert order.tolist() == [[1, 2, 0]]
    images = without_duplicates(scores.expand(2, -1), boxes.expand(2, -1, -1), threshold=0.7)
    assert images[0].tolist() == images[1].tolist()  # boxes of two images are no duplicates
