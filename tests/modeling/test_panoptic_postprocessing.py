"""Panoptic maps and instance masks equal those of a slow reference, pixel by pixel, in ordinary and odd cases."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from updetr_d2.modeling.panoptic_postprocessing import (
    _label_grid,
    instance_masks,
    panoptic_segmentation,
    upsample_masks,
)

NUM_THINGS, NUM_CLASSES = 3, 5  # classes 3 and 4 are stuff


def slow_panoptic(class_logits, mask_logits, size, *, score_threshold=0.85, min_area=4):
    """The definition, one query and one pixel at a time, with Pillow's nearest neighbour."""
    probabilities = class_logits.softmax(-1).numpy()
    masks = mask_logits.numpy()
    kept = []
    for query, row in enumerate(probabilities):
        best = max(range(NUM_CLASSES + 1), key=lambda k: row[k])
        if best != NUM_CLASSES and row[best] > score_threshold:
            kept.append((query, best, float(row[best])))
    first_round = True
    while kept:
        segment = np.zeros(masks.shape[1:], dtype=np.uint8)
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                best = 0
                for i, (query, _, _) in enumerate(kept):
                    if masks[query, y, x] > masks[kept[best][0], y, x]:
                        best = i
                category = kept[best][1]
                if first_round and category >= NUM_THINGS:
                    best = [c for _, c, _ in kept].index(category)
                segment[y, x] = best
        resized = np.array(Image.fromarray(segment).resize((size[1], size[0]), Image.Resampling.NEAREST))
        areas = [int((resized == i).sum()) for i in range(len(kept))]
        if min(areas) > min_area:
            infos = [
                {
                    "id": i + 1,
                    "isthing": category < NUM_THINGS,
                    "category_id": category,
                    "score": score,
                    "area": area,
                }
                for i, ((_, category, score), area) in enumerate(zip(kept, areas))
            ]
            return resized.astype(np.int32) + 1, infos
        kept = [entry for entry, area in zip(kept, areas) if area > min_area]
        first_round = False
    return np.zeros(size, dtype=np.int32), []


def confident(classes, confidence=8.0):
    """Class logits of queries that are sure of their classes; NUM_CLASSES is "no object"."""
    return confidence * F.one_hot(torch.tensor(classes), NUM_CLASSES + 1).float()


def assert_equal_to_slow(class_logits, mask_logits, size):
    fast_map, fast_infos = panoptic_segmentation(
        class_logits, mask_logits, size, num_thing_classes=NUM_THINGS
    )
    slow_map, slow_infos = slow_panoptic(class_logits, mask_logits, size)
    assert fast_map.dtype == torch.int32
    np.testing.assert_array_equal(fast_map.numpy(), slow_map)
    assert [{**info, "score": None} for info in fast_infos] == [
        {**info, "score": None} for info in slow_infos
    ]
    assert [i["score"] for i in fast_infos] == pytest.approx([i["score"] for i in slow_infos])
    return fast_map, fast_infos


def test_labels_are_resized_as_by_pillow_wherever_the_centres_fall():
    rng = np.random.default_rng(0)
    for old, new in [(800, 375), (836, 627), (1333, 1000), *rng.integers(1, 1400, (100, 2)).tolist()]:
        labels = torch.arange(old, dtype=torch.int32)[:, None]
        expected = Image.fromarray(labels.numpy(), mode="I").resize((1, new), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(
            labels[_label_grid(labels.shape, (new, 1), labels.device)].numpy(), np.array(expected)
        )


@pytest.mark.parametrize("size", [(12, 17), (24, 34), (8, 30)])
@pytest.mark.parametrize("num_queries", [1, 8, 100])
def test_random_predictions(num_queries, size):
    classes = torch.randint(NUM_CLASSES + 1, (num_queries,)).tolist()
    class_logits = confident(classes) + torch.randn(num_queries, NUM_CLASSES + 1)
    # Smooth masks, some of them hardly anywhere the highest.
    masks = F.interpolate(torch.randn(1, num_queries, 3, 4), size=(12, 17), mode="bilinear")[0]
    masks += torch.randn(num_queries, 1, 1)
    assert_equal_to_slow(class_logits, masks, size)


def test_hundred_confident_queries_of_few_pixels_each():
    """Segments are dropped over several rounds, since pixels move to others in each."""
    classes = [i % NUM_CLASSES for i in range(100)]
    _, infos = assert_equal_to_slow(confident(classes), torch.randn(100, 12, 17), (12, 17))
    assert 1 < len(infos) < 100


def test_nothing_kept_is_void_without_segments():
    class_logits = confident([NUM_CLASSES, 1, 2])
    class_logits[1:] *= 0.2  # below the score threshold
    segment_map, infos = assert_equal_to_slow(class_logits, torch.randn(3, 6, 6), (6, 6))
    assert not segment_map.any()
    assert infos == []


def test_no_queries_at_all():
    segment_map, infos = panoptic_segmentation(
        torch.zeros(0, 6), torch.zeros(0, 6, 6), (4, 5), num_thing_classes=NUM_THINGS
    )
    assert segment_map.shape == (4, 5)
    assert infos == []


def test_queries_of_one_stuff_class_make_one_segment_with_id_1():
    masks = torch.randn(4, 6, 6)
    segment_map, infos = assert_equal_to_slow(confident([4, 4, 4, 4]), masks, (6, 6))
    assert (segment_map == 1).all()
    assert infos[0]["category_id"] == 4
    assert infos[0]["isthing"] is False
    assert infos[0]["area"] == 36


def test_pixels_of_a_merged_query_go_to_the_best_of_the_queries_that_are_left():
    """The official code gives the pixels out anew, since a merged query has no segment of its own."""
    masks = torch.full((3, 6, 6), -1.0)
    masks[0, :, :3] = 2  # stuff, the left half
    masks[1, :, 3:] = 2  # the same stuff, the right half
    masks[2, :, 4:] = 1  # a thing that has the first row, and elsewhere loses to the second query alone
    masks[2, 0] = 3
    segment_map, infos = assert_equal_to_slow(confident([4, 4, 1]), masks, (6, 6))
    assert [info["category_id"] for info in infos] == [4, 1]
    assert (segment_map[1:, :4] == 1).all()
    assert (segment_map[1:, 4:] == 2).all()
    assert (segment_map[0] == 2).all()


def test_things_of_one_class_stay_apart():
    masks = torch.stack((torch.eye(6), 1 - torch.eye(6)))
    segment_map, infos = assert_equal_to_slow(confident([1, 1]), masks, (6, 6))
    assert segment_map.unique().tolist() == [1, 2]
    assert [info["isthing"] for info in infos] == [True, True]


@pytest.mark.parametrize(("area", "survives"), [(4, False), (5, True)])
def test_segments_of_four_pixels_go_to_the_others(area, survives):
    masks = torch.zeros(2, 6, 6)
    masks[1, 0, :area] = 1  # the other mask wins the rest by its place
    segment_map, _ = assert_equal_to_slow(confident([0, 1]), masks, (6, 6))
    assert (segment_map.unique().tolist() == [1, 2]) == survives
    assert (segment_map > 0).all()


def test_stuff_that_is_small_without_its_merged_queries_is_dropped():
    """Two queries of a stuff class with 3 pixels each: the second is merged, which leaves 3 to the first."""
    masks = torch.zeros(3, 6, 6)
    masks[1, 0, :3] = 1
    masks[2, 5, :3] = 1
    _, infos = assert_equal_to_slow(confident([0, 3, 3]), masks, (6, 6))
    assert [info["area"] for info in infos] == [36]


def test_among_equal_logits_the_first_query_wins():
    masks = torch.zeros(3, 6, 6)
    masks[0, :3] = -1
    segment_map, infos = assert_equal_to_slow(confident([0, 1, 2]), masks, (6, 6))
    assert [info["category_id"] for info in infos] == [0, 1]
    assert (segment_map[:3] == 2).all()


def test_a_score_at_the_threshold_is_not_enough():
    logits = torch.tensor([[0.0, float("-inf"), float("-inf"), float("-inf"), float("-inf"), 0.0]])
    args = (logits + torch.tensor([1e-3, 0, 0, 0, 0, 0]), torch.ones(1, 3, 3), (3, 3))
    score = float(args[0].softmax(-1).max())
    kept = [
        bool(panoptic_segmentation(*args, num_thing_classes=3, score_threshold=threshold)[1])
        for threshold in (score - 1e-4, score, score + 1e-4)
    ]
    assert kept == [True, False, False]


def test_masks_are_upsampled_with_their_padding_and_cut_afterwards():
    logits = torch.randn(2, 4, 5)
    whole = F.interpolate(logits[None], size=(16, 20), mode="bilinear", align_corners=False)[0]
    cut = upsample_masks(logits, (16, 20), (13, 18))
    assert torch.equal(cut, whole[:, :13, :18])


def test_instance_masks_by_hand():
    logits = torch.tensor([[[-1.0, 1.0], [0.0, 2.0]]])
    expected = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    assert torch.equal(instance_masks(logits, (4, 4))[0], expected)
    # sigmoid(1) = 0.73 is no longer enough, sigmoid(2) = 0.88 is.
    assert instance_masks(logits, (2, 2), threshold=0.8).tolist() == [[[False, False], [False, True]]]
