"""Samples of pre-training on boxes: they move with the image, slivers go, patches show what is left."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from updetr_d2.data.dataset_mappers.objects import ObjectDatasetMapper
from updetr_d2.data.proposals import Proposals
from updetr_d2.data.proposals.file import image_key, to_units
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.data.transforms.resize import DETRResize

# A blue square, a green bar and a red one on black.
BOXES = [[10, 20, 40, 50], [60, 0, 80, 60], [0, 60, 100, 70]]
COLORS = [[0, 0, 255], [0, 255, 0], [255, 0, 0]]
SIZE = (80, 100)


@pytest.fixture
def photo(tmp_path):
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for (x0, y0, x1, y1), color in zip(BOXES, COLORS):
        pixels[y0:y1, x0:x1] = color
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return {"file_name": str(tmp_path / "photo.png"), "image_id": "photo.png", "annotations": ["not read"]}


def proposals(boxes=BOXES, width=100, clusters=()):
    return Proposals(
        source="test",
        keys=np.array([image_key("photo.png")], np.uint64),
        sizes=np.array([[width, 80]], np.int32),
        file_sizes=np.zeros(1, np.int64),
        ends=np.array([len(boxes)]),
        boxes=to_units(np.array(boxes, float).reshape(-1, 4), width=width, height=80),
        scores=np.zeros(len(boxes), np.float32),
        num_clusters=9 if len(clusters) else 0,
        clusters=np.array(clusters, np.int32),
    )


def build(augmentations=(), **arguments):
    arguments = {"proposals": proposals(), "patch_size": 16, **arguments}
    return ObjectDatasetMapper(
        augmentations=list(augmentations), resize=DETRResize([80], 10_000), **arguments
    )


class Crop(T.Augmentation):
    def __init__(self, *box):
        super().__init__()
        self.box = box

    def get_transform(self, image):
        x0, y0, x1, y1 = self.box
        return T.CropTransform(x0, y0, x1 - x0, y1 - y0)


def boxes_of(sample):
    return sample["instances"].gt_boxes.tensor.numpy()


def test_boxes_classes_and_patches_of_the_file(photo):
    sample = build()(photo)
    np.testing.assert_allclose(boxes_of(sample), BOXES, atol=0.01)
    assert sample["instances"].gt_classes.tolist() == [0, 0, 0]
    assert sample["patches"].shape == (3, 3, 16, 16)
    assert "annotations" not in sample
    for patch, color in zip(sample["patches"].float().mean(dim=(2, 3)), COLORS):
        assert np.argmax(patch) == np.argmax(color)


def test_a_flip_takes_the_boxes_along(photo):
    sample = build([T.RandomFlip(prob=1.0)])(photo)
    expected = [[100 - x1, y0, 100 - x0, y1] for x0, y0, x1, y1 in BOXES]
    np.testing.assert_allclose(boxes_of(sample), expected, atol=0.01)
    assert sample["patches"][0, 2].float().mean() > 200


def test_a_crop_cuts_boxes_and_drops_slivers(photo):
    """Of the square two thirds are left, of the bar a tenth; the patch shows what is left."""
    sample = build([Crop(20, 10, 62, 60)], min_visible=0.3)(photo)
    np.testing.assert_allclose(boxes_of(sample), [[0, 10, 20, 40]], atol=0.01)
    assert sample["patches"].shape[0] == 1
    assert sample["patches"][0, 2].min() > 200
    sample = build([Crop(20, 10, 62, 60)], min_visible=0.05)(photo)
    assert len(boxes_of(sample)) == 2


def test_a_crop_without_boxes_is_not_made(photo):
    sample = build([Crop(82, 0, 100, 50)])(photo)
    assert sample["image"].shape == (3, *SIZE)
    assert len(boxes_of(sample)) == 3


def test_only_the_first_boxes_count(photo):
    np.testing.assert_allclose(boxes_of(build(max_boxes=1)(photo)), BOXES[:1], atol=0.01)


def test_some_of_the_boxes_are_drawn_for_queries(photo):
    np.random.seed(0)
    mapper = build(chosen_boxes=1)
    seen = {tuple(boxes_of(mapper(photo))[0].round().tolist()) for _ in range(30)}
    assert seen == {tuple(map(float, box)) for box in BOXES}


def test_clusters_are_classes(photo):
    sample = build(proposals=proposals(clusters=[4, 8, 0]), with_clusters=True)(photo)
    assert sample["instances"].gt_classes.tolist() == [4, 8, 0]


@pytest.mark.parametrize("arguments", [{}, {"random_share": 0.5, "proposals": proposals(clusters=[1, 2, 3])}])
def test_clusters_that_are_not_there_are_an_error(arguments):
    with pytest.raises(ValueError, match=r"INPUT.PROPOSALS.CLUSTERS needs .*--cluster K"):
        build(with_clusters=True, **arguments)


def test_a_share_of_the_boxes_is_random(photo):
    np.random.seed(0)
    mapper = build(random_share=0.4)
    kept = sum(
        any(np.abs(box - true).max() < 0.1 for true in BOXES)
        for _ in range(100)
        for box in boxes_of(mapper(photo))
    )
    assert 150 < kept < 210


def test_without_a_file_all_boxes_are_random_and_follow_the_seed(photo):
    mapper = build(proposals=None, max_boxes=12, object_class=1)
    samples = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        samples.append(mapper(photo))
    assert len(boxes_of(samples[0])) == 12
    assert samples[0]["instances"].gt_classes.tolist() == [1] * 12
    np.testing.assert_array_equal(boxes_of(samples[0]), boxes_of(samples[1]))
    assert np.abs(boxes_of(samples[0]) - boxes_of(samples[2])).max() > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proposals": proposals([])}, "has 0 boxes, fewer than INPUT.PROPOSALS.MIN_BOXES"),
        ({"min_boxes": 4}, "has 3 boxes"),
        ({"proposals": proposals(width=90)}, "has 100x80 px, but its boxes are for 90x80 px"),
    ],
)
def test_images_without_boxes_of_their_own_are_replaced(photo, arguments, message):
    with pytest.raises(UnusableImageError, match=message):
        build(**arguments)(photo)


def test_patches_are_cut_only_where_they_are_needed(photo):
    assert "patches" not in build(patch_size=None)(photo)
