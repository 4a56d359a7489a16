"""From a teacher's detections to labels of the strong view, by hand."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from updetr_d2.mean_teacher.pseudo_labels import (
    PseudoLabels,
    ScoreThresholds,
    candidates,
    carry_over,
    divide,
)


def detections(boxes, scores, classes):
    return Instances(
        (100, 200),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_overlapping_and_faint_boxes_are_no_candidates():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [70, 70, 80, 80]]
    found = candidates(
        detections(boxes, [0.5, 0.9, 0.3, 0.05], [0, 1, 2, 3]), min_score=0.1, nms_threshold=0.7
    )
    assert found.pred_classes.tolist() == [1, 2]  # the best of the two that overlap, then by score
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])


def test_scores_part_labels_from_uncertain_boxes():
    labels = divide(
        detections([[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]], [0.5, 0.4, 0.39], [0, 1, 1]),
        torch.tensor([0.6, 0.4]),
    )
    assert labels.certain.pred_boxes.tensor.tolist() == [[1, 1, 2, 2]]
    assert labels.uncertain.tensor.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_a_second_guess_at_a_labeled_object_is_not_uncertain():
    boxes = [
        [10, 10, 50, 50],  # the label
        [20, 20, 40, 40],  # a part of it
        [20, 20, 40, 40],  # of another class: something in front of it
        [45, 10, 85, 50],  # a neighbor
    ]
    labels = divide(detections(boxes, [0.9, 0.3, 0.3, 0.3], [0, 0, 1, 0]), torch.tensor([0.4, 0.4]))
    assert len(labels.certain) == 1
    assert labels.uncertain.tensor.tolist() == [boxes[2], boxes[3]]


def test_the_quantile_lowers_the_threshold_of_weak_classes_only():
    thresholds = ScoreThresholds(3, threshold=0.4, quantile=0.5, memory=4)
    thresholds.observe([0] * 5 + [1] * 4, [0.1, 0.7, 0.8, 0.9, 0.95, 0.1, 0.2, 0.3, 0.35])
    assert thresholds.per_class().tolist() == pytest.approx([0.4, 0.25, 0.4])
    resumed = ScoreThresholds(3, threshold=0.4, quantile=0.5, memory=4)
    resumed.load_state_dict(thresholds.state_dict())
    for each in (thresholds, resumed):
        each.observe([1], [0.05])
    assert torch.equal(resumed.per_class(), thresholds.per_class())
    assert ScoreThresholds(2, threshold=0.3).per_class().tolist() == pytest.approx([0.3, 0.3])


def test_boxes_that_the_strong_view_hides_become_uncertain():
    # The strong view is the left half, doubled: 200 px wide and high.
    sample = {
        "image": torch.zeros(3, 200, 200),
        "strong_from_weak": torch.tensor([[2.0, 0, 0], [0, 2, 0]], dtype=torch.float64),
        "erased": torch.tensor([[0, 0, 40, 40]]),
    }
    boxes = [
        [0, 0, 40, 40],  # erased by a quarter
        [0, 0, 22, 22],  # erased by 83 %
        [90, 10, 110, 20],  # half outside
        [98, 30, 108, 40],  # 80 % outside
        [150, 10, 160, 20],  # outside
    ]
    labels = PseudoLabels(
        detections(boxes, [0.9] * 5, [0, 1, 2, 3, 3]), Boxes(torch.tensor([[5.0, 5, 9, 9]]))
    )
    learned, uncertain = carry_over(labels, sample, min_visible=0.3)
    assert learned.image_size == (200, 200)
    assert learned.gt_classes.tolist() == [0, 2]
    assert learned.gt_boxes.tensor.tolist() == [[0, 0, 80, 80], [180, 20, 200, 40]]
    assert uncertain.tensor.tolist() == [[0, 0, 44, 44], [196, 60, 200, 80], [10, 10, 18, 18]]
    assert learned.gt_boxes.tensor.dtype == torch.float32


def test_no_detection_at_all():
    nothing = detections([], [], [])
    found = candidates(nothing, min_score=0.1, nms_threshold=0.7)
    labels = divide(found, torch.tensor([0.4]))
    sample = {
        "image": torch.zeros(3, 8, 8),
        "strong_from_weak": torch.eye(3, dtype=torch.float64)[:2],
        "erased": torch.zeros(0, 4, dtype=torch.int64),
    }
    learned, uncertain = carry_over(labels, sample, min_visible=0.3)
    assert len(learned) == len(uncertain) == 0
