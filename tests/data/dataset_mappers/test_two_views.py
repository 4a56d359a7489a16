"""The two views of an unlabeled image: what is where in them, and that the seed decides."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_cfg
from PIL import Image

from updetr_d2.data.dataset_mappers.two_views import TwoViewDatasetMapper
from updetr_d2.data.loading.samples import seeded_generators
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.data.transforms.views import map_boxes

ONLY_GEOMETRY = (
    *("INPUT.STRONG_VIEW.COLOR_JITTER_PROB", 0.0, "INPUT.STRONG_VIEW.GRAYSCALE_PROB", 0.0),
    *("INPUT.STRONG_VIEW.BLUR_PROB", 0.0, "INPUT.STRONG_VIEW.ERASE_PROB", 0.0),
)
SIZES = (
    *("INPUT.MIN_SIZE_TRAIN", (90, 150, 260), "INPUT.MAX_SIZE_TRAIN", 400),
    *("INPUT.DETR_CROP.RESIZE_SIDES", (150, 200), "INPUT.DETR_CROP.CROP_SIDE_RANGE", (120, 150)),
)


@pytest.fixture
def photo(tmp_path):
    """A white rectangle on black; gives its dataset dict."""
    pixels = np.zeros((160, 220, 3), np.uint8)
    pixels[60:110, 70:120] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    box = {"bbox": [70, 60, 50, 50], "bbox_mode": 1, "category_id": 2}
    return {"file_name": str(tmp_path / "photo.png"), "image_id": 5, "annotations": [box]}


def mapper(*options, **kwargs):
    return TwoViewDatasetMapper(tiny_cfg("DETR", *SIZES, *options), **kwargs)


def bright_box(image):
    rows, columns = (image[0] > 127).nonzero(as_tuple=True)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).double()


def test_the_rectangle_is_where_the_map_says(photo):
    make = mapper(*ONLY_GEOMETRY, with_labels=True)
    sizes = set()
    for seed in range(40):
        with seeded_generators(seed):
            sample = make(photo)
        weak, strong = (bright_box(sample[key]) for key in ("weak_image", "image"))
        height, width = sample["image"].shape[1:]
        limits = torch.tensor([width, height, width, height])
        expected = map_boxes(weak[None], sample["strong_from_weak"])[0].clamp(min=torch.zeros(4), max=limits)
        assert (strong - expected).abs().max() <= 3  # resized edges are soft
        true = sample["true_instances"]
        assert (true.gt_boxes.tensor[0] - weak).abs().max() <= 1.5
        assert true.gt_classes.tolist() == [2]
        sizes.add((height, width))
    assert len(sizes) > 20


def test_what_is_erased_has_one_color_and_the_weak_view_is_whole(photo):
    make = mapper("INPUT.STRONG_VIEW.ERASE_PROB", 1.0)
    erased_share = []
    for seed in range(10):
        with seeded_generators(seed):
            sample = make(photo)
        assert len(sample["erased"]) == 3
        x0, y0, x1, y1 = sample["erased"][-1].tolist()
        region = sample["image"][:, y0:y1, x0:x1].flatten(1)
        assert (region == region[:, :1]).all()
        erased_share.append((x1 - x0) * (y1 - y0) / sample["image"][0].numel())
        assert set(sample["weak_image"].unique().tolist()) >= {0, 255}
    assert 0.015 < min(erased_share) < max(erased_share) < 0.16


def test_the_seed_decides_and_labels_are_read_only_where_asked_for(photo):
    make = mapper()
    samples = []
    for seed in (3, 3, 4):
        with seeded_generators(seed):
            samples.append(make(photo))
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert not torch.equal(samples[0]["strong_from_weak"], samples[2]["strong_from_weak"])
    assert "true_instances" not in samples[0]
    assert "instances" not in samples[0]
    assert json.dumps(photo)  # the dataset dict is as it was


def test_a_small_image_is_refused(tmp_path):
    Image.new("RGB", (16, 200)).save(tmp_path / "icon.png")
    with pytest.raises(UnusableImageError, match=r"less than INPUT\.MIN_IMAGE_SIDE"):
        mapper()({"file_name": str(tmp_path / "icon.png")})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SCALE_RANGE", (1.0, 0.5)),
        ("ERASE_COUNT", -1),
        ("ERASE_PROB", 1.5),
        ("ERASE_AREA", (0.0, 0.5)),
        ("BLUR_PROB", 2.0),
        ("HUE", 0.7),
    ],
)
def test_a_wrong_value_is_named(key, value):
    with pytest.raises(ValueError, match=rf"INPUT\.STRONG_VIEW\.{key}"):
        mapper(f"INPUT.STRONG_VIEW.{key}", value)
