"""Parts of labels: Soft Teacher's numbers, k images and k objects a class, a held-out part with every class."""

from collections import Counter

import numpy as np
import pytest

from updetr_d2.data.datasets import label_splits
from updetr_d2.data.datasets.label_splits import Labels


def make_labels(*, num_images=40, num_classes=3, seed=0, crowds=False) -> Labels:
    """Images with ids that are no positions, and up to five objects each; class 30 is rare."""
    rng = np.random.default_rng(seed)
    images = [{"id": 1000 - 7 * i, "file_name": f"{i}.png"} for i in range(num_images)]
    annotations = []
    for i, image in enumerate(images):
        for _ in range(rng.integers(0, 5)):
            category = 10 * int(1 + rng.choice(num_classes, p=[0.6, 0.3, 0.1]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "iscrowd": int(crowds and i % 3 == 0),
                }
            )
    categories = [{"id": 10 * (i + 1), "name": f"class {i}"} for i in range(num_classes)]
    return Labels({"images": images, "annotations": annotations, "categories": categories}, "images", "train")


def soft_teacher(image_ids: list, percent: float, fold: int) -> list:
    """What the script of Soft Teacher chooses: with NumPy's global generator, in the order of the file."""
    np.random.seed(fold)
    size = int(percent / 100.0 * len(image_ids))
    chosen = set(np.random.choice(range(len(image_ids)), size=size, replace=False))
    return [image_id for i, image_id in enumerate(image_ids) if i in chosen]


def ids(labels: Labels) -> list:
    return [image["id"] for image in labels.images]


@pytest.mark.parametrize("percent", [5, 10, 29, 50, 100])
@pytest.mark.parametrize("fold", [1, 2, 5])
def test_fractions_are_those_of_soft_teacher(percent, fold):
    labels = make_labels(num_images=100)
    part = labels.part(label_splits.fraction(labels, percent=percent, seed=fold))
    assert ids(part) == soft_teacher(ids(labels), percent, fold)
    expected = [a for a in labels.content["annotations"] if a["image_id"] in ids(part)]
    assert part.content["annotations"] == expected


def test_the_rest_is_every_other_image_without_labels():
    labels = make_labels()
    chosen = label_splits.fraction(labels, percent=25, seed=1)
    rest = labels.without(chosen)
    assert ids(rest) == [image_id for image_id in ids(labels) if image_id not in chosen]
    assert rest.content["annotations"] == [] and rest.content["categories"] == labels.content["categories"]


def test_smaller_fractions_of_a_fold_are_parts_of_larger_ones():
    labels = make_labels()
    small, large = (label_splits.fraction(labels, percent=p, seed=3) for p in (10, 50))
    assert small < large


def test_choosing_leaves_the_global_generator_alone():
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    label_splits.fraction(make_labels(), percent=50, seed=1)
    assert np.random.rand() == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 3])
def test_every_class_has_its_images(seed, count):
    labels = make_labels(seed=seed, num_images=100, crowds=True)
    part = labels.part(label_splits.images_per_class(labels, count=count, seed=seed))
    images_with = Counter()
    for image_id in ids(part):
        images_with.update({o["category_id"] for o in labels.objects if o["image_id"] == image_id})
    assert all(images_with[category] >= count for category in (10, 20, 30))
    # None could be spared: no more than the count for each class, and the labels of each image are complete.
    assert len(part.images) <= 3 * count
    assert [a for a in labels.content["annotations"] if a["image_id"] in ids(part)] == part.content[
        "annotations"
    ]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [1, 3])
def test_shots_are_exact(seed, count):
    labels = make_labels(seed=seed, num_images=100, crowds=seed % 2 == 1)
    part = label_splits.shots(labels, count=count, seed=seed)
    assert Counter(a["category_id"] for a in part.content["annotations"]) == dict.fromkeys(
        (10, 20, 30), count
    )
    assert {a["image_id"] for a in part.content["annotations"]} == set(ids(part))
    assert not any(a["iscrowd"] for a in part.content["annotations"])
    known = {a["id"] for a in labels.content["annotations"]}
    assert len({a["id"] for a in part.content["annotations"]} & known) == 3 * count


def test_shots_take_single_objects_where_whole_images_do_not_fit():
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"id": i, "image_id": 1 + i // 3, "category_id": 1} for i in range(6)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    part = label_splits.shots(Labels(content, "images", "train"), count=4, seed=0)
    assert len(part.objects) == 4 and len(part.images) == 2


def test_seeds_choose_differently_and_repeatably():
    labels = make_labels(num_images=100)
    for choose in (
        lambda seed: label_splits.fraction(labels, percent=20, seed=seed),
        lambda seed: label_splits.images_per_class(labels, count=3, seed=seed),
        lambda seed: set(ids(label_splits.shots(labels, count=3, seed=seed))),
        lambda seed: set(ids(label_splits.hold_out(labels, share=0.2, seed=seed)[1])),
    ):
        assert choose(1) == choose(1) != choose(2)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_what_is_held_out_takes_no_class_away(seed, share):
    labels = make_labels(seed=seed)
    train, held_out = label_splits.hold_out(labels, share=share, seed=seed)
    assert sorted(ids(train) + ids(held_out)) == sorted(ids(labels))
    assert len(held_out.images) <= max(1, round(share * len(labels.images)))
    classes = {o["category_id"] for o in labels.objects}
    assert {o["category_id"] for o in train.objects} == classes
    common = {c for c, images in labels.image_ids_by_class().items() if len(images) > 1}
    if share * len(labels.images) >= len(common):
        assert {o["category_id"] for o in held_out.objects} >= common


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda labels: label_splits.fraction(labels, percent=1, seed=0), "not a single one"),
        (lambda labels: label_splits.fraction(labels, percent=0, seed=0), "more than 0"),
        (lambda labels: label_splits.shots(labels, count=99, seed=0), "class 2.*fewer than the 99"),
        (lambda labels: label_splits.images_per_class(labels, count=99, seed=0), "class 2.*than the 99"),
        (lambda labels: label_splits.hold_out(labels, share=1.0, seed=0), "between 0 and 1"),
        (lambda labels: label_splits.hold_out(labels.part({1000}), share=0.5, seed=0), "too few"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(call, words):
    labels = make_labels(num_images=30)
    few = {o["category_id"]: o for o in labels.objects}
    assert 30 in few
    with pytest.raises(ValueError, match=words):
        # The first class with too few objects is named, which a rare third class makes the last of all.
        call(_only(labels, 30) if "class 2" in words else labels)


def _only(labels: Labels, category_id: int) -> Labels:
    part = labels.with_objects([o for o in labels.objects if o["category_id"] == category_id])
    categories = [c for c in labels.content["categories"] if c["id"] == category_id]
    return Labels({**part.content, "categories": categories}, "images", "train")
