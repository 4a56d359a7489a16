"""Samples of one-shot detection: the patch shows the query's class, the targets are all objects of it."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from updetr_d2 import add_updetr_config
from updetr_d2.data.dataset_mappers.oneshot import cut_patch
from updetr_d2.data.loading.build import build_train_loader
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.tasks import build_mapper, task_of

NAMES = ["red", "green", "blue", "white"]
COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)
RED, GREEN, BLUE, WHITE = range(4)
# Classes of the objects of each image; white is unseen.
IMAGES = ((RED, RED, GREEN), (RED, WHITE), (GREEN, BLUE), (BLUE, WHITE, RED), (WHITE,), (GREEN, GREEN, BLUE))
BOXES = ((4, 4, 24, 30), (34, 8, 60, 40), (66, 20, 90, 60))


@pytest.fixture
def cfg(tmp_path):
    """Black images with one-coloured rectangles, PNG, whose colour is their class."""
    dataset_dicts = []
    for number, class_ids in enumerate(IMAGES):
        pixels = np.zeros((64, 96, 3), np.uint8)
        annotations = []
        for class_id, (x0, y0, x1, y1) in zip(class_ids, BOXES):
            pixels[y0:y1, x0:x1] = COLORS[class_id]
            box = {"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS}
            annotations.append({**box, "category_id": class_id, "iscrowd": 0})
        file_name = str(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(file_name)
        size = {"height": 64, "width": 96}
        dataset_dicts.append({"file_name": file_name, "image_id": number, **size, "annotations": annotations})
    name = "colors_of_a_test"
    DatasetCatalog.register(name, lambda: dataset_dicts)
    MetadataCatalog.get(name).set(thing_classes=NAMES, evaluator_type="coco")
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "OneShotDETR", "INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", "none"),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.DETR_CROP.PROB", 0.0, "MODEL.MASK_ON", False),
            *("DATASETS.TRAIN", (name,), "DATASETS.ONESHOT.UNSEEN_CLASSES", ("white",)),
            *("DATASETS.ONESHOT.ABSENT_SHARE", 0.0, "INPUT.QUERY_PATCH.SIZE", 16),
            *("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "SEED", 0),
        ]
    )
    yield cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def make_samples(cfg, passes=10):
    dataset_dicts = task_of(cfg).training_set(cfg)
    mapper = build_mapper(cfg, is_train=True, dataset_dicts=dataset_dicts)
    np.random.seed(0)
    return [mapper(each) for _ in range(passes) for each in dataset_dicts]


def shown_class(patch):
    """Class of a patch by its colour, which must fill it."""
    colors = patch.flatten(1).unique(dim=1)
    assert colors.shape[1] == 1
    return [tuple(color) for color in COLORS].index(tuple(colors[:, 0].numpy()))


def test_patches_show_the_class_and_targets_are_all_its_objects(cfg):
    for sample in make_samples(cfg):
        query_class = sample["query_class"]
        assert sample["patches"].shape == (1, 3, 16, 16)
        assert sample["patches"].dtype == torch.uint8
        assert shown_class(sample["patches"][0]) == query_class
        expected = [box for box, c in zip(BOXES, IMAGES[sample["image_id"]]) if c == query_class]
        assert sample["instances"].gt_boxes.tensor.tolist() == [list(map(float, box)) for box in expected]
        assert sample["instances"].gt_classes.tolist() == [0] * len(expected)
        assert len(expected) > 0
        assert "annotations" not in sample
        assert "queries" not in sample


def test_every_class_of_an_image_is_queried(cfg):
    seen = {}
    for sample in make_samples(cfg, passes=30):
        seen.setdefault(sample["image_id"], set()).add(sample["query_class"])
    assert seen == {i: set(classes) - {WHITE} for i, classes in enumerate(IMAGES) if set(classes) != {WHITE}}


@pytest.mark.parametrize("keep", [True, False])
def test_no_unseen_object_leaks_into_training(cfg, keep):
    """By the pixels of the patches and of the targets, over the loader that training uses."""
    cfg.DATASETS.ONESHOT.ABSENT_SHARE = 0.3
    cfg.DATASETS.ONESHOT.KEEP_IMAGES_WITH_UNSEEN = keep
    dataset_dicts = task_of(cfg).training_set(cfg)
    loader = build_train_loader(
        cfg,
        mapper=build_mapper(cfg, is_train=True, dataset_dicts=dataset_dicts),
        dataset_dicts=dataset_dicts,
    )
    white, num_white_images = torch.tensor([255, 255, 255], dtype=torch.uint8)[:, None, None], 0
    for _, batch in zip(range(60), loader):
        for sample in batch:
            assert sample["query_class"] != WHITE
            assert not (sample["patches"][0] == white).all(dim=0).any()
            for x0, y0, x1, y1 in sample["instances"].gt_boxes.tensor.int().tolist():
                assert not (sample["image"][:, y0:y1, x0:x1] == white).all(dim=0).any()
            num_white_images += (sample["image"] == white).all(dim=0).any().item()
    assert (num_white_images > 0) == keep


def test_absent_classes_have_no_targets_and_their_share(cfg):
    cfg.DATASETS.ONESHOT.ABSENT_SHARE = 0.4
    samples = make_samples(cfg, passes=80)
    absent = [each for each in samples if each["query_class"] not in IMAGES[each["image_id"]]]
    assert len(absent) / len(samples) == pytest.approx(0.4, abs=0.08)
    for sample in absent:
        assert len(sample["instances"]) == 0
        assert shown_class(sample["patches"][0]) == sample["query_class"] != WHITE


def test_several_shots(cfg):
    cfg.DATASETS.ONESHOT.NUM_SHOTS = 3
    for sample in make_samples(cfg, passes=2):
        assert sample["patches"].shape == (3, 3, 16, 16)
        assert {shown_class(patch) for patch in sample["patches"]} == {sample["query_class"]}


def test_image_whose_classes_no_other_image_shows_is_unusable(cfg):
    dataset_dicts = task_of(cfg).training_set(cfg)[:1]  # red and green, all alone
    mapper = build_mapper(cfg, is_train=True, dataset_dicts=dataset_dicts)
    with pytest.raises(UnusableImageError, match="SAME_IMAGE would allow its own"):
        mapper(dataset_dicts[0])
    cfg.DATASETS.ONESHOT.SAME_IMAGE = True
    mapper = build_mapper(cfg, is_train=True, dataset_dicts=dataset_dicts)
    assert len(mapper(dataset_dicts[0])["instances"]) > 0


def test_channel_order_of_patches_is_that_of_images(cfg):
    cfg.INPUT.FORMAT = "BGR"
    for sample in make_samples(cfg, passes=1):
        blue_green_red = COLORS[sample["query_class"]][::-1]
        assert sample["patches"][0, :, 0, 0].tolist() == blue_green_red.tolist()


@pytest.mark.parametrize(
    ("key", "value"), [("NUM_SHOTS", 0), ("ABSENT_SHARE", 1.5), ("CONTEXT_MARGIN", -0.1)]
)
def test_values_out_of_range_are_errors(cfg, key, value):
    cfg.DATASETS.ONESHOT[key] = value
    with pytest.raises(ValueError, match=rf"{key} \({value}\)"):
        build_mapper(cfg, is_train=True, dataset_dicts=task_of(cfg).training_set(cfg))


def columns(box, margin):
    """First and last column and row of a cut from an image whose values are its coordinates."""
    ys, xs = np.mgrid[:50, :80].astype(np.uint8)
    image = np.stack([xs, ys, np.zeros_like(xs)], axis=-1)
    size = round(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * margin))
    patch = cut_patch(image, box, margin=margin, size=size)
    assert patch.shape == (size, size, 3)
    return patch[0, 0, 0], patch[0, 0, 1], patch[-1, -1, 0], patch[-1, -1, 1]


def test_patch_is_the_box_with_its_context():
    assert columns((10, 12, 30, 32), 0.0) == (10, 12, 29, 31)
    assert columns((10, 12, 30, 32), 0.25) == (5, 7, 34, 36)


def test_patch_ends_at_the_border_of_the_image():
    ys = np.arange(50, dtype=np.uint8)[:, None, None]
    image = np.broadcast_to(ys, (50, 80, 3))
    assert cut_patch(image, (0, 40, 20, 60), margin=0.5, size=20).max() == 49
    assert cut_patch(image, (200, 200, 210, 210), margin=0.0, size=4).shape == (4, 4, 3)


def test_training_needs_the_images_that_queries_are_cut_from(cfg):
    with pytest.raises(ValueError, match="dataset_dicts"):
        build_mapper(cfg, is_train=True)
