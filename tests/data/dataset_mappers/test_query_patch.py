"""Samples of random query patch detection: patches, boxes, image and classes belong together."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from PIL import Image
from torch.nn import functional as F

from updetr_d2 import add_updetr_config
from updetr_d2.data.dataset_mappers.query_patch import QueryPatchDatasetMapper
from updetr_d2.data.transforms.image_io import UnusableImageError

SHORT_SIDES = (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)


def paper_cfg(*options) -> CfgNode:
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = SHORT_SIDES
    cfg.INPUT.MAX_SIZE_TRAIN = 600
    cfg.INPUT.MIN_SIZE_TEST = 400
    cfg.INPUT.MAX_SIZE_TEST = 600
    cfg.MODEL.DETR.NUM_CLASSES = 2
    cfg.merge_from_list(list(options))
    return cfg


@pytest.fixture(name="image_file", scope="module")
def smooth_image(tmp_path_factory):
    """A 300×200 image of large colour blobs, in which every place looks different."""
    rng = np.random.default_rng(1)
    pixels = cv2.resize(
        rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), (300, 200), interpolation=cv2.INTER_CUBIC
    )
    path = tmp_path_factory.mktemp("images") / "smooth.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def cut(sample: dict, box: torch.Tensor) -> torch.Tensor:
    """The part of the resized image inside a box, resampled to 128×128 at its exact fractional place."""
    image = sample["image"].float()[None]
    height, width = image.shape[-2:]
    steps = (torch.arange(128) + 0.5) / 128
    x = (box[0] + steps * (box[2] - box[0])) / width * 2 - 1
    y = (box[1] + steps * (box[3] - box[1])) / height * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return F.grid_sample(image, grid, align_corners=False, padding_mode="border")[0]


def test_the_sample_has_the_documented_shapes(image_file):
    sample = QueryPatchDatasetMapper(paper_cfg(), is_train=True)({"file_name": image_file, "image_id": 3})
    assert sample["file_name"] == image_file
    assert sample["image_id"] == 3
    assert (sample["height"], sample["width"]) == (200, 300)
    height, width = sample["image"].shape[1:]
    assert sample["image"].dtype == sample["patches"].dtype == torch.uint8
    assert sample["image"].is_contiguous()
    assert sample["patches"].shape == (10, 3, 128, 128)
    assert sample["instances"].image_size == (height, width)
    assert sample["instances"].gt_classes.tolist() == [1] * 10
    boxes = sample["instances"].gt_boxes.tensor
    assert boxes.dtype == torch.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_each_box_frames_what_its_patch_shows(image_file, image_format):
    """The image is resized after the patches are cut, so they agree up to the two resamplings."""
    mapper = QueryPatchDatasetMapper(paper_cfg("INPUT.FORMAT", image_format), is_train=False)
    sample = mapper({"file_name": image_file})
    for box, patch in zip(sample["instances"].gt_boxes.tensor, sample["patches"]):
        assert (cut(sample, box) - patch.float()).abs().mean() < 2
    moved = sample["instances"].gt_boxes.tensor.roll(1, dims=0)
    assert (cut(sample, moved[0]) - sample["patches"][0].float()).abs().mean() > 10
    rgb = torch.from_numpy(np.array(Image.open(image_file))).float().mean(dim=(0, 1))
    expected = rgb if image_format == "RGB" else rgb.flip(0)
    assert (sample["image"].float().mean(dim=(1, 2)) - expected).abs().max() < 1


def test_boxes_are_scaled_by_the_ratio_of_the_integer_sizes(image_file):
    """Dividing by the ratio gives the integers back that the patches were cut at."""
    np.random.seed(0)
    mapper = QueryPatchDatasetMapper(paper_cfg(), is_train=True)
    fractional = 0
    for _ in range(5):
        sample = mapper({"file_name": image_file})
        height, width = sample["image"].shape[1:]
        ratio = torch.tensor([width / 300, height / 200] * 2)
        boxes = sample["instances"].gt_boxes.tensor
        original = boxes / ratio
        assert (original - original.round()).abs().max() < 1e-3
        assert (original[:, 2:] - original[:, :2] >= 8 - 1e-3).all()
        fractional += (boxes - boxes.round()).abs().gt(0.01).sum()
    assert fractional > 20


def test_patches_are_augmented_in_training_only(image_file):
    def mean_difference(is_train: bool) -> float:
        sample = QueryPatchDatasetMapper(paper_cfg(), is_train=is_train)({"file_name": image_file})
        pairs = zip(sample["instances"].gt_boxes.tensor, sample["patches"])
        return np.mean([float((cut(sample, box) - patch.float()).abs().mean()) for box, patch in pairs])

    np.random.seed(0)
    assert mean_difference(is_train=True) > 8
    assert mean_difference(is_train=False) < 2


def test_training_draws_sizes_and_patches_from_numpys_global_generator(image_file):
    mapper = QueryPatchDatasetMapper(paper_cfg("INPUT.MAX_SIZE_TRAIN", 2000), is_train=True)
    np.random.seed(3)
    first, second = mapper({"file_name": image_file}), mapper({"file_name": image_file})
    np.random.seed(3)
    again = mapper({"file_name": image_file})
    assert torch.equal(first["patches"], again["patches"])
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["patches"], second["patches"])
    sides = {mapper({"file_name": image_file})["image"].shape[1] for _ in range(80)}
    assert sides <= set(SHORT_SIDES)
    assert len(sides) >= 8


def test_evaluation_depends_on_seed_and_identity_alone(image_file):
    mapper = QueryPatchDatasetMapper(paper_cfg(), is_train=False)

    def boxes(mapper=mapper, **fields):
        np.random.seed(None)
        return mapper({"file_name": image_file, **fields})["instances"].gt_boxes.tensor

    assert torch.equal(boxes(image_id=1), boxes(image_id=1))
    assert torch.equal(boxes(image_id="n01/a.png"), boxes(image_id="n01/a.png"))
    assert torch.equal(boxes(), boxes())
    assert not torch.equal(boxes(image_id=1), boxes(image_id=2))
    assert not torch.equal(boxes(image_id="n01/a.png"), boxes(image_id="n02/a.png"))
    other_seed = QueryPatchDatasetMapper(paper_cfg("INPUT.QUERY_PATCH.EVAL_SEED", 1), is_train=False)
    assert not torch.equal(boxes(image_id=1), boxes(other_seed, image_id=1))


def test_evaluation_resizes_to_the_test_size(image_file):
    sample = QueryPatchDatasetMapper(paper_cfg(), is_train=False)({"file_name": image_file})
    assert sample["image"].shape == (3, 400, 600)


def test_labels_are_ignored(image_file):
    labelled = {
        "file_name": image_file,
        "height": 1,
        "width": 1,
        "annotations": [{"bbox": [0, 0, 5, 5], "bbox_mode": 0, "category_id": 60}],
        "sem_seg_file_name": "nowhere.png",
    }
    sample = QueryPatchDatasetMapper(paper_cfg(), is_train=True)(labelled)
    assert set(sample) == {"file_name", "height", "width", "image", "instances", "patches"}
    assert (sample["height"], sample["width"]) == (200, 300)
    assert "annotations" in labelled


@pytest.mark.parametrize(("num_classes", "label"), [(2, 1), (1, 0)])
def test_the_label_is_the_last_foreground_class(image_file, num_classes, label):
    mapper = QueryPatchDatasetMapper(paper_cfg("MODEL.DETR.NUM_CLASSES", num_classes), is_train=True)
    assert set(mapper({"file_name": image_file})["instances"].gt_classes.tolist()) == {label}


def test_the_smallest_image_that_is_used_and_the_largest_that_is_not(tmp_path):
    mapper = QueryPatchDatasetMapper(paper_cfg("MODEL.UPDETR.NUM_PATCHES", 1), is_train=True)
    Image.new("RGB", (17, 500)).save(tmp_path / "17.png")
    Image.new("RGB", (16, 500)).save(tmp_path / "16.png")
    assert mapper({"file_name": str(tmp_path / "17.png")})["patches"].shape == (1, 3, 128, 128)
    with pytest.raises(UnusableImageError, match=r"MIN_IMAGE_SIDE"):
        mapper({"file_name": str(tmp_path / "16.png")})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.DETR.NUM_CLASSES", 80),
        ("INPUT.FORMAT", "L"),
        ("INPUT.MIN_IMAGE_SIDE", 15),
        ("MODEL.UPDETR.NUM_PATCHES", 0),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        ("INPUT.MIN_SIZE_TRAIN", ()),
    ],
)
def test_values_that_do_not_fit_are_an_error_that_names_the_key(key, value):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        QueryPatchDatasetMapper(paper_cfg(key, value), is_train=True)
