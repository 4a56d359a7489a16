"""Which images and labels are shown: the worst, the best, random others, and labels that may be wrong."""

import itertools

import numpy as np
import pytest

from updetr_d2.evaluation import error_examples as examples
from updetr_d2.evaluation.detection_matching import read_results
from updetr_d2.evaluation.error_examples import ImageCounts

BOX, FAR, ELSEWHERE = (0, 0, 10, 10), (50, 50, 10, 10), (80, 0, 9, 9)


def results_of(*images):
    """From, for each image, true (category, box[, crowd]) and found (category, box, score)."""
    annotations, predictions = [], []
    for i, (true, found) in enumerate(images):
        for category, box, *crowd in true:
            annotation = {"id": len(annotations) + 1, "image_id": i, "category_id": category}
            annotations.append(annotation | {"bbox": list(box), "iscrowd": int(bool(crowd))})
        for category, box, score in found:
            predictions.append({"image_id": i, "category_id": category, "bbox": list(box), "score": score})
    content = {"images": [{"id": i} for i in range(len(images))], "annotations": annotations}
    return read_results(content, predictions)


def test_an_image_is_counted_at_the_score():
    found = [(1, BOX, 0.9), (2, FAR, 0.8), (1, ELSEWHERE, 0.7), (1, (20, 20, 5, 5), 0.1)]
    true = [(1, BOX), (1, FAR), (1, (30, 0, 9, 9))]
    (counts,) = examples.count_images(results_of((true, found)), 0.5)
    # FAR has a box of another class: it is not missed, but nothing matches it.
    assert counts == ImageCounts(right=1, wrong=2, missed=1, unmatched=2)
    assert counts.f1 == pytest.approx(2 / (2 + 2 + 2))
    assert counts.describe() == "1 right, 2 wrong, 1 missed"


def test_crowds_are_neither_missed_nor_found():
    (counts,) = examples.count_images(results_of(([(1, BOX, "crowd")], [(1, BOX, 0.9)])), 0.5)
    assert counts == ImageCounts() and counts.f1 == 1


def test_examples_are_the_worst_the_best_and_others():
    counts = [
        ImageCounts(right=3),
        ImageCounts(right=1),
        ImageCounts(right=1, wrong=1),
        ImageCounts(wrong=4, missed=2, unmatched=2),
        ImageCounts(wrong=1),
        ImageCounts(),
        ImageCounts(right=2),
    ]
    chosen = examples.choose_examples(counts, 2)
    assert chosen["worst"] == [3, 4] and chosen["best"] == [0, 6]
    assert len(chosen["random"]) == 2 and set(chosen["random"]) < {1, 2, 5}
    assert chosen == examples.choose_examples(counts, 2)
    everything = examples.choose_examples(counts, 10)
    assert sorted(itertools.chain(*everything.values())) == list(range(7))
    assert everything["worst"] == [3, 4, 2] and everything["random"] == [5]
    assert examples.choose_examples([], 3) == {"worst": [], "best": [], "random": []}


def test_counts_of_several_detectors_add_up():
    assert sum([ImageCounts(1, 2, 3, 4), ImageCounts(5, 6, 7, 8)], ImageCounts()) == ImageCounts(6, 8, 10, 12)


def test_labels_that_may_be_wrong():
    results = results_of(
        ([(1, BOX)], [(1, BOX, 0.9), (2, FAR, 0.95), (2, ELSEWHERE, 0.2)]),  # nothing is labeled at FAR
        ([(1, BOX), (2, FAR)], [(2, BOX, 0.8), (2, FAR, 0.7)]),  # BOX is a 2, says the detector
        ([(1, BOX), (2, FAR), (2, ELSEWHERE, "crowd")], [(1, BOX, 0.9), (1, (55, 50, 10, 10), 0.1)]),
        ([(1, FAR)], [(1, BOX, 0.6)]),  # nothing near FAR
    )
    suspects = examples.find_suspects(results, threshold=0.5, number=10)
    told = [(s.kind, s.index, s.found, s.labeled, s.score, s.box.tolist()) for s in suspects]
    assert told == [
        ("no label", 0, 2, None, 0.95, list(FAR)),
        ("no label", 3, 1, None, 0.6, list(BOX)),
        ("another label", 1, 2, 1, 0.8, list(BOX)),
        # Not the label of image 2 at FAR: a box of a low score, of another class, overlaps it.
        ("never found", 3, None, 1, 0.0, list(FAR)),
    ]
    fewer = examples.find_suspects(results, threshold=0.5, number=1)
    assert [(s.kind, s.index) for s in fewer] == [("no label", 0), ("another label", 1), ("never found", 3)]


def test_an_image_without_predictions_has_labels_that_were_never_found():
    (suspect,) = examples.find_suspects(results_of(([(1, BOX)], [])), threshold=0.5, number=3)
    assert suspect.kind == "never found" and np.array_equal(suspect.box, BOX)
