"""Targets of a batch: relative boxes, padding, counts."""

import torch
from detectron2.structures import Boxes, Instances

from updetr_d2.modeling.targets import BatchTargets


def instances(height, width, boxes, classes):
    return Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_boxes_are_relative_to_their_own_image_and_padding_is_a_real_box():
    targets = BatchTargets.from_instances(
        [
            instances(100, 200, [[20.0, 10.0, 60.0, 50.0]], [3]),
            instances(50, 50, [[0.0, 0.0, 50.0, 50.0], [10.0, 20.0, 20.0, 25.0]], [1, 2]),
            instances(10, 10, [], []),
        ],
        torch.device("cpu"),
    )
    assert targets.counts == [1, 2, 0]
    assert targets.labels.tolist() == [[3, 0], [1, 2], [0, 0]]
    whole = [0.5, 0.5, 1.0, 1.0]
    expected = [[[0.2, 0.3, 0.2, 0.4], whole], [whole, [0.3, 0.45, 0.2, 0.1]], [whole, whole]]
    torch.testing.assert_close(targets.boxes, torch.tensor(expected))


def test_a_batch_without_any_target():
    targets = BatchTargets.from_instances([instances(10, 10, [], [])] * 2, torch.device("cpu"))
    assert targets.counts == [0, 0]
    assert targets.labels.shape == (2, 0)
    assert targets.boxes.shape == (2, 0, 4)
