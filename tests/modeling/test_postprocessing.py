"""From head outputs to Instances, with probabilities that can be read off."""

import torch

from updetr_d2.modeling.postprocessing import absolute_boxes, detector_postprocess, query_patch_postprocess


def logits_of(probabilities):
    return torch.tensor(probabilities).log()


def test_boxes_scale_to_height_and_width_of_each_image():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]], [[0.5, 0.25, 1.0, 0.5]]])
    expected = torch.tensor([[[80.0, 30.0, 120.0, 70.0]], [[0.0, 0.0, 10.0, 10.0]]])
    torch.testing.assert_close(absolute_boxes(boxes, [(100, 200), (20, 10)]), expected)


def test_detection_takes_the_best_class_that_is_not_no_object():
    logits = logits_of([[[0.2, 0.1, 0.7], [0.3, 0.6, 0.1]]])
    (result,) = detector_postprocess(logits, torch.rand(1, 2, 4), [(30, 40)])
    assert result.image_size == (30, 40)
    assert result.pred_classes.tolist() == [0, 1]
    torch.testing.assert_close(result.scores, torch.tensor([0.2, 0.6]))


def patch_logits(scores):
    """Three logits (classes 0 and 1, no object) whose foreground probability is the given score."""
    return logits_of([[[0.1 * s, 0.9 * s, 1 - s] for s in image] for image in scores])


def test_the_best_query_of_each_patch_comes_first_and_the_others_follow_by_score():
    # Three groups of two queries.
    logits = patch_logits([[0.2, 0.3, 0.9, 0.8, 0.1, 0.05]])
    boxes = torch.rand(1, 6, 4)
    (result,) = query_patch_postprocess(logits, boxes, 3, [(10, 10)], [3])
    torch.testing.assert_close(result.scores, torch.tensor([0.3, 0.9, 0.1, 0.8, 0.2, 0.05]))
    assert result.pred_patches.tolist() == [0, 1, 2, 1, 0, 2]
    expected = absolute_boxes(boxes, [(10, 10)])[0, [1, 2, 4, 3, 0, 5]]
    torch.testing.assert_close(result.pred_boxes.tensor, expected)


def test_groups_beyond_the_patches_of_an_image_are_left_out():
    logits = patch_logits([[0.1, 0.2, 0.9, 0.8], [0.1, 0.2, 0.9, 0.8]])
    first, second = query_patch_postprocess(logits, torch.rand(2, 4, 4), 2, [(10, 10)] * 2, [1, 2])
    assert first.pred_patches.tolist() == [0, 0]
    torch.testing.assert_close(first.scores, torch.tensor([0.2, 0.1]))
    assert second.pred_patches.tolist() == [0, 1, 1, 0]


def test_with_missing_patches_the_others_keep_their_order():
    """As if the image's groups had been given alone, for every number of patches in one batch."""
    logits, boxes = torch.randn(3, 12, 3), torch.rand(3, 12, 4)
    sizes = [(10, 20)] * 3
    together = query_patch_postprocess(logits, boxes, 4, sizes, [1, 4, 3])
    for i, count in enumerate([1, 4, 3]):
        kept = count * 3
        (alone,) = query_patch_postprocess(
            logits[i : i + 1, :kept], boxes[i : i + 1, :kept], count, sizes[:1], [count]
        )
        assert together[i].pred_patches.tolist() == alone.pred_patches.tolist()
        torch.testing.assert_close(together[i].scores, alone.scores)
        torch.testing.assert_close(together[i].pred_boxes.tensor, alone.pred_boxes.tensor)


def test_of_boxes_that_overlap_more_than_the_threshold_the_best_stays_in_each_class():
    """By hand: the second box has IoU 0.8 with the first, the third 0.5 with it."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.32], [0.5, 0.5, 0.2, 0.4]])[None]
    logits = torch.tensor([[[0.0, 3.0], [2.0, -9.0], [1.0, -9.0]]])
    sizes = [(100, 200)]
    arguments = {"class_loss": "focal", "max_detections": 10}
    (everything,) = detector_postprocess(logits, boxes, sizes, **arguments)
    assert len(everything) == 6  # pairs of query and class
    (result,) = detector_postprocess(logits, boxes, sizes, **arguments, nms_threshold=0.7)
    assert list(zip(result.query.tolist(), result.pred_classes.tolist())) == [(0, 1), (1, 0), (2, 0), (2, 1)]
    torch.testing.assert_close(result.pred_boxes.tensor[0], torch.tensor([60.0, 30.0, 140.0, 70.0]))


def test_focal_detections_are_the_best_pairs_of_query_and_class():
    logits = torch.tensor([[[0.0, 4.0], [2.0, 3.0]]])
    boxes = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]]])
    (result,) = detector_postprocess(logits, boxes, [(10, 20)], class_loss="focal", max_detections=3)
    assert list(zip(result.query.tolist(), result.pred_classes.tolist())) == [(0, 1), (1, 1), (1, 0)]
    torch.testing.assert_close(result.scores, torch.tensor([4.0, 3.0, 2.0]).sigmoid())
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [10, 0, 20, 10], [10, 0, 20, 10]]
