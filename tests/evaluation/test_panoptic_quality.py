"""Panoptic quality: numbers by hand, and those of panopticapi on random segmentations with VOID and crowds."""

import copy

import numpy as np
import pytest
from helpers import ids_to_rgb
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from updetr_d2.evaluation.panoptic_quality import FN, FP, IOU, TP, add_counts, panoptic_quality

NUM_CLASSES = 5


def segment(segment_id, category_id, area=None, iscrowd=0):
    return {"id": segment_id, "category_id": category_id, "area": area, "iscrowd": iscrowd}


def count(true_row, true_segments, predicted_row, predicted_segments):
    counts = np.zeros((NUM_CLASSES, 4))
    add_counts(counts, np.array([true_row]), true_segments, np.array([predicted_row]), predicted_segments)
    return counts


def test_match_by_hand():
    # 4 px of the truth, 5 predicted, 3 shared, 1 of the prediction on VOID: IoU 3 / (4 + 5 - 3 - 1).
    counts = count(
        [1, 1, 1, 1, 0, 2], [segment(1, 0, 4), segment(2, 1, 1)], [0, 9, 9, 9, 9, 9], [segment(9, 0)]
    )
    assert counts[0].tolist() == [3 / 5, 1, 0, 0]
    assert counts[1].tolist() == [0, 0, 0, 1]
    qualities, seen = panoptic_quality(counts)
    assert qualities[0].tolist() == [3 / 5, 3 / 5, 1]
    assert seen.tolist() == [True, True, False, False, False]


def test_half_is_no_match():
    counts = count([1, 1], [segment(1, 0, 2)], [9, 0], [segment(9, 0)])
    assert counts[0].tolist() == [0, 0, 1, 1]
    assert panoptic_quality(counts)[0][0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("category", "false_positives"), [(2, 0), (3, 1)])
def test_predictions_on_crowds_count_for_other_classes_only(category, false_positives):
    counts = count([1, 1, 1, 0], [segment(1, 2, 3, iscrowd=1)], [9, 9, 0, 0], [segment(9, category)])
    assert counts[:, FP].sum() == counts[category, FP] == false_positives
    assert not counts[:, [IOU, TP, FN]].any()


def test_predictions_mostly_on_void_do_not_count():
    segments = [segment(1, 0, 2)]
    assert not count([0, 0, 0, 1, 1], segments, [9, 9, 9, 9, 0], [segment(9, 1)])[1].any()
    assert count([0, 0, 1, 1, 1], segments, [9, 9, 9, 9, 0], [segment(9, 1)])[1, FP] == 1


@pytest.mark.parametrize("listed", [[], [segment(9, 0), segment(8, 0)]])
def test_list_and_map_must_agree(listed):
    with pytest.raises(ValueError, match="has the ids"):
        count([1], [segment(1, 0, 1)], [9], listed)


def random_segmentation(rng, base=None):
    """A map of blocks, at times like ``base``, and its segments; ids need all three bytes of a PNG."""
    num_segments = int(rng.integers(1, 9))
    ids = np.append(rng.choice(2**24 - 1, num_segments, replace=False) + 1, 0)
    blocks = np.kron(rng.integers(len(ids), size=(5, 6)), np.ones((3, 3), dtype=np.int64))
    segment_map = ids[blocks]
    if base is not None:
        segment_map = np.where(rng.random(segment_map.shape) < rng.random() / 2, segment_map, base)
    return segment_map


def segments_of(rng, segment_map):
    """At most one crowd of each class, as in COCO."""
    segments, crowds = [], set()
    for segment_id, area in zip(*np.unique(segment_map, return_counts=True)):
        if segment_id:
            category = int(rng.integers(NUM_CLASSES - 1))  # the last class never appears
            iscrowd = int(category not in crowds and rng.random() < 0.3)
            crowds |= {category} if iscrowd else set()
            segments.append(segment(int(segment_id), category, int(area), iscrowd))
    return segments


def predicted_of(rng, segment_map, true_segments):
    """Classes of the truth, but for some."""
    classes = {each["id"]: each["category_id"] for each in true_segments}
    return [
        segment(
            int(i), classes[i] if i in classes and rng.random() < 0.8 else int(rng.integers(NUM_CLASSES - 1))
        )
        for i in np.unique(segment_map).tolist()
        if i
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_numbers_are_those_of_panopticapi(tmp_path_factory, seed):
    panopticapi = pytest.importorskip("panopticapi.evaluation")
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(seed)
    counts, pairs = np.zeros((NUM_CLASSES, 4)), []
    for index in range(3):
        true_map = random_segmentation(rng)
        predicted_map = random_segmentation(rng, base=true_map)
        true_segments = segments_of(rng, true_map)
        predicted = predicted_of(rng, predicted_map, true_segments)
        annotations = []
        for name, segment_map, segments in (("t", true_map, true_segments), ("p", predicted_map, predicted)):
            file_name = f"{name}{index}.png"
            Image.fromarray(ids_to_rgb(segment_map)).save(folder / file_name)
            annotations.append(
                {"image_id": index, "file_name": file_name, "segments_info": copy.deepcopy(segments)}
            )
        pairs.append(tuple(annotations))
        add_counts(counts, true_map, true_segments, predicted_map, predicted)

    categories = {i: {"id": i, "isthing": 1} for i in range(NUM_CLASSES)}
    statistics = panopticapi.pq_compute_single_core(0, pairs, str(folder), str(folder), categories)
    theirs = [[getattr(statistics[i], key) for key in ("iou", "tp", "fp", "fn")] for i in range(NUM_CLASSES)]
    np.testing.assert_allclose(counts, theirs, rtol=0, atol=1e-9)
    qualities, seen = panoptic_quality(counts)
    if seen.any():
        mean, _ = statistics.pq_average(categories, None)
        assert qualities[seen].mean(axis=0) == pytest.approx([mean["pq"], mean["sq"], mean["rq"]], abs=1e-9)
        assert mean["n"] == seen.sum()
