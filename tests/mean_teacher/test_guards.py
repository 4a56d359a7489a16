"""A collapsed teacher is said once, with advice; precision and recall by hand."""

import logging
import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from updetr_d2.mean_teacher.guards import CollapseGuard, precision_and_recall


def warnings(caplog, num_classes, iterations, window=3):
    guard = CollapseGuard(num_classes, window)
    with caplog.at_level(logging.WARNING):
        for classes in iterations:
            guard.observe(classes)
    return [record.getMessage() for record in caplog.records]


def test_a_teacher_without_boxes_is_said_once_with_advice(caplog):
    (message,) = warnings(caplog, 2, [[0, 1]] + [[]] * 9)
    assert "has found no box at all for 3 iterations" in message
    assert "SCORE_THRESH" in message
    assert "MODEL.WEIGHTS" in message


def test_a_teacher_of_one_class_is_said(caplog):
    (message,) = warnings(caplog, 2, [[1, 0], [1], [1, 1], [], [1]])
    assert "class 1 only" in message


@pytest.mark.parametrize(
    ("num_classes", "iterations"),
    [(2, [[0], [1], [0], [0], [1]]), (2, [[], [], [0, 1]] * 3), (1, [[0]] * 9), (2, [[], []])],
    ids=["classes in turn", "now and then nothing", "one class in all", "too short"],
)
def test_a_sound_teacher_is_not_complained_about(caplog, num_classes, iterations):
    assert not warnings(caplog, num_classes, iterations)


def test_precision_and_recall_by_hand():
    def boxes(*lefts):
        return Boxes(torch.tensor([[left, 0.0, left + 10, 10] for left in lefts]).reshape(-1, 4))

    true = [
        Instances((99, 99), gt_boxes=boxes(0, 30, 60), gt_classes=torch.tensor([0, 0, 1])),
        Instances((99, 99), gt_boxes=boxes(0), gt_classes=torch.tensor([1])),
    ]
    found = [
        Instances(
            (99, 99),
            pred_boxes=boxes(1, 0, 30, 61, 80),  # twice the first object, a wrong class, right, nothing there
            scores=torch.tensor([0.5, 0.9, 0.9, 0.9, 0.9]),
            pred_classes=torch.tensor([0, 0, 1, 1, 0]),
        ),
        Instances((99, 99), pred_boxes=boxes(), scores=torch.zeros(0), pred_classes=torch.zeros(0)),
    ]
    assert precision_and_recall(found, true) == (2 / 5, 2 / 4)
    assert all(map(math.isnan, precision_and_recall(found[1:], [true[1][:0]])))
