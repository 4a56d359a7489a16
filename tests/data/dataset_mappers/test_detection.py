"""Samples of detection: labels follow the augmentation exactly, and the augmentation is DETR's."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import BoxMode
from PIL import Image

from updetr_d2 import add_updetr_config
from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.data.transforms.resize import resize_uint8

WIDTH, HEIGHT = 96, 64
GREEN_BOX = (20, 10, 60, 50)  # XYXY


def make_mapper(*options, is_train=True):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.MASK_ON = False
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.INPUT.DETR_CROP.PROB = 0.0
    cfg.merge_from_list(list(options))
    return DETRDatasetMapper(cfg, is_train)


def make_annotation(box=GREEN_BOX, category_id=3, **more):
    return {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category_id, **more}


@pytest.fixture
def dataset_dict(tmp_path):
    """A red image with a green rectangle, and its label."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0] = 255
    x0, y0, x1, y1 = GREEN_BOX
    pixels[y0:y1, x0:x1] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [make_annotation()],
    }


def green_box(image):
    """The rectangle as the pixels show it, XYXY."""
    ys, xs = np.nonzero((image[1] > 127).numpy())
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_sample_has_the_image_and_its_labels(dataset_dict):
    sample = make_mapper()(dataset_dict)
    assert sample["image"].shape == (3, HEIGHT, WIDTH)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"][:, 0, 0].tolist() == [255, 0, 0]
    assert (sample["image_id"], sample["height"], sample["width"]) == (7, HEIGHT, WIDTH)
    assert sample["instances"].gt_boxes.tensor.tolist() == [list(GREEN_BOX)]
    assert sample["instances"].gt_classes.tolist() == [3]
    assert sample["instances"].image_size == (HEIGHT, WIDTH)
    assert "annotations" not in sample
    assert len(dataset_dict["annotations"]) == 1, "the data set's own dict must not change"


def test_bgr_reverses_the_channels(dataset_dict):
    assert make_mapper("INPUT.FORMAT", "BGR")(dataset_dict)["image"][:, 0, 0].tolist() == [0, 0, 255]


def test_flip_mirrors_pixels_and_boxes_in_half_of_the_cases(dataset_dict):
    np.random.seed(0)
    mapper = make_mapper("INPUT.RANDOM_FLIP", "horizontal")
    samples = [mapper(dataset_dict) for _ in range(200)]
    boxes = [sample["instances"].gt_boxes.tensor[0].tolist() for sample in samples]
    mirrored = [WIDTH - GREEN_BOX[2], GREEN_BOX[1], WIDTH - GREEN_BOX[0], GREEN_BOX[3]]
    assert all(box in (list(GREEN_BOX), mirrored) for box in boxes)
    assert all(box == green_box(sample["image"]) for box, sample in zip(boxes, samples))
    assert 70 <= boxes.count(mirrored) <= 130


def test_scales_are_drawn_from_the_set_within_the_limit(dataset_dict):
    mapper = make_mapper("INPUT.MIN_SIZE_TRAIN", (32, 48, 128), "INPUT.MAX_SIZE_TRAIN", 120)
    sizes = {tuple(mapper(dataset_dict)["image"].shape[1:]) for _ in range(60)}
    # 128 would make the long side 192: the limit of 120 reduces the short side to 80.
    assert sizes == {(32, 48), (48, 72), (80, 120)}


def test_boxes_follow_resize_crop_and_resize(dataset_dict):
    """The box that the label gives is the one that the pixels show, whatever the augmentation."""
    np.random.seed(0)
    mapper = make_mapper(
        *("INPUT.RANDOM_FLIP", "horizontal", "INPUT.MIN_SIZE_TRAIN", (64, 96)),
        *("INPUT.DETR_CROP.PROB", 1.0, "INPUT.DETR_CROP.RESIZE_SIDES", (80, 120)),
        *("INPUT.DETR_CROP.CROP_SIDE_RANGE", (48, 80)),
    )
    num_seen = 0
    for _ in range(50):
        sample = mapper(dataset_dict)
        if len(sample["instances"]):
            num_seen += 1
            box = sample["instances"].gt_boxes.tensor[0].numpy()
            np.testing.assert_allclose(box, green_box(sample["image"]), atol=2.5)
    assert num_seen > 30


def test_crop_branch_has_its_probability_and_sizes(dataset_dict):
    np.random.seed(0)
    options = ("INPUT.DETR_CROP.RESIZE_SIDES", (100,), "INPUT.DETR_CROP.CROP_SIDE_RANGE", (40, 50))
    mapper = make_mapper("INPUT.DETR_CROP.PROB", 0.5, "INPUT.MAX_SIZE_TRAIN", 1000, *options)
    plain = (HEIGHT, WIDTH)
    sizes = [tuple(mapper(dataset_dict)["image"].shape[1:]) for _ in range(200)]
    assert 70 <= sizes.count(plain) <= 130
    # Crops are between 40x50 and 50x40; then their short side becomes HEIGHT.
    ratios = [max(size) / min(size) for size in sizes if size != plain]
    assert max(ratios) <= 50 / 40 + 0.02
    assert all(min(size) == HEIGHT for size in sizes)


def test_resize_before_the_crop_has_no_limit_of_the_long_side(tmp_path):
    """A 20 x 200 image is enlarged to 100 x 1000 before the crop although MAX_SIZE_TRAIN is 300."""
    Image.fromarray(np.zeros((20, 200, 3), np.uint8)).save(tmp_path / "wide.png")
    mapper = make_mapper(
        *("INPUT.DETR_CROP.PROB", 1.0, "INPUT.DETR_CROP.RESIZE_SIDES", (100,)),
        *("INPUT.DETR_CROP.CROP_SIDE_RANGE", (100, 100)),
        *("INPUT.MAX_SIZE_TRAIN", 300, "INPUT.MIN_SIZE_TRAIN", (100,)),
    )
    sample = mapper({"file_name": str(tmp_path / "wide.png"), "annotations": []})
    assert sample["image"].shape == (3, 100, 100)


def test_objects_that_a_crop_leaves_out_are_removed(dataset_dict):
    np.random.seed(0)
    # Boxes in two far corners: a crop of a quarter of the image never holds both.
    corners = [make_annotation((0, 0, 8, 8), 0), make_annotation((WIDTH - 8, HEIGHT - 8, WIDTH, HEIGHT), 1)]
    dataset_dict["annotations"] = corners
    mapper = make_mapper(
        *("INPUT.DETR_CROP.PROB", 1.0, "INPUT.DETR_CROP.RESIZE_SIDES", (HEIGHT,)),
        *("INPUT.DETR_CROP.CROP_SIDE_RANGE", (32, 32)),
    )
    counts = []
    for _ in range(100):
        instances = mapper(dataset_dict)["instances"]
        counts.append(len(instances))
        assert instances.gt_boxes.area().min() > 0 if len(instances) else True
        assert len(instances.gt_classes) == len(instances.gt_boxes)
    assert max(counts) == 1
    assert min(counts) == 0


def test_crowds_are_left_out(dataset_dict):
    dataset_dict["annotations"] += [make_annotation((0, 0, 90, 60), 1, iscrowd=1), make_annotation(iscrowd=0)]
    assert make_mapper()(dataset_dict)["instances"].gt_classes.tolist() == [3, 3]


def test_image_without_objects_is_a_sample_with_none(dataset_dict):
    dataset_dict["annotations"] = []
    instances = make_mapper()(dataset_dict)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64


def test_inference_resizes_only_and_has_no_labels(dataset_dict):
    mapper = make_mapper("INPUT.DETR_CROP.PROB", 1.0, "INPUT.RANDOM_FLIP", "horizontal", is_train=False)
    samples = [mapper(dataset_dict) for _ in range(5)]
    assert all(torch.equal(sample["image"], samples[0]["image"]) for sample in samples)
    assert samples[0]["image"].shape == (3, 32, 48)
    assert (samples[0]["height"], samples[0]["width"]) == (HEIGHT, WIDTH)
    assert "instances" not in samples[0]


def test_image_of_another_size_than_its_labels_say_is_unusable(dataset_dict):
    dataset_dict["width"] += 1
    with pytest.raises(UnusableImageError, match=r"has 96x64 px, but its annotations are for 97x64 px"):
        make_mapper()(dataset_dict)


def test_boxes_refer_to_the_upright_image(dataset_dict, tmp_path):
    """A camera that was turned stores rows as columns and says so in EXIF."""
    image = Image.open(dataset_dict["file_name"])
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    dataset_dict["file_name"] = str(tmp_path / "turned.jpg")
    sample = make_mapper()(dataset_dict)
    np.testing.assert_allclose(green_box(sample["image"]), GREEN_BOX, atol=1)


@pytest.mark.parametrize("crop_probability", [0.0, 1.0])
def test_masks_follow_the_image(dataset_dict, crop_probability):
    np.random.seed(0)
    x0, y0, x1, y1 = GREEN_BOX
    dataset_dict["annotations"] = [make_annotation(segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]])]
    mapper = make_mapper(
        *("MODEL.MASK_ON", True, "INPUT.RANDOM_FLIP", "horizontal"),
        *("INPUT.DETR_CROP.PROB", crop_probability, "INPUT.DETR_CROP.RESIZE_SIDES", (HEIGHT,)),
        *("INPUT.DETR_CROP.CROP_SIDE_RANGE", (56, 64)),
    )
    for _ in range(10):
        sample = mapper(dataset_dict)
        mask = sample["instances"].gt_masks.tensor[0]
        green = sample["image"][1] > 127
        assert (mask ^ green).float().mean() < 0.02


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("is_train", [True, False])
def test_drafted_photos_have_the_labels_and_sizes_of_whole_ones(orientation, is_train, tmp_path):
    """Boxes and masks go the way of the pixels, although the decoder has made the first step of it."""
    pixels = np.zeros((640, 960, 3), np.uint8)
    x0, y0, x1, y1 = box = (200, 100, 600, 500)
    pixels[y0:y1, x0:x1] = (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels)
    if orientation == 6:  # shown turned by 90 degrees clockwise
        stored = stored.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    dataset_dict = {
        "file_name": str(tmp_path / "photo.jpg"),
        "width": 960,
        "height": 640,
        "annotations": [make_annotation(box, segmentation=[polygon])],
    }
    options = ("MODEL.MASK_ON", True, "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96)
    drafting = make_mapper(*options, "INPUT.JPEG_DRAFT", True, is_train=is_train)
    assert drafting.draft_side == 96
    drafted = drafting(dataset_dict)
    whole = make_mapper(*options, is_train=is_train)(dataset_dict)
    assert drafted["image"].shape == whole["image"].shape == (3, 96, 144)
    assert (drafted["height"], drafted["width"]) == (640, 960)
    assert not torch.equal(drafted["image"], whole["image"]), "it was not drafted"
    difference = drafted["image"].int() - whole["image"].int()
    assert difference.abs().float().mean() < 1
    if is_train:
        found = drafted["instances"]
        np.testing.assert_allclose(found.gt_boxes.tensor[0], [30, 15, 90, 75], atol=0.01)
        assert (found.gt_masks.tensor[0] ^ (drafted["image"][1] > 127)).float().mean() < 0.02


def test_what_is_enlarged_is_never_drafted():
    """The longest side that any branch asks for decides."""
    crop = ("INPUT.DETR_CROP.PROB", 0.5, "INPUT.DETR_CROP.RESIZE_SIDES", (400, 600))
    options = ("INPUT.JPEG_DRAFT", True, "INPUT.MIN_SIZE_TRAIN", (480, 512), "INPUT.MIN_SIZE_TEST", 800)
    assert make_mapper(*options).draft_side == 512
    assert make_mapper(*options, *crop).draft_side == 600
    assert make_mapper(*options, is_train=False).draft_side == 800
    assert make_mapper().draft_side is None


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 1000)])
@pytest.mark.parametrize("is_train", [True, False])
def test_images_of_one_pixel_become_samples(size, is_train, tmp_path, monkeypatch):
    """However thin: a run must not end because of one, for lack of memory either."""
    np.random.seed(0)
    sizes = []

    def resize(image, *, height, width):
        sizes.append((height, width))
        return resize_uint8(image, height=height, width=width)

    monkeypatch.setattr("updetr_d2.data.transforms.resize.resize_uint8", resize)
    width, height = size
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "thin.png")
    annotations = [make_annotation((0, 0, width, height))]
    dataset_dict = {"file_name": str(tmp_path / "thin.png"), "annotations": annotations}
    for crop in (0.0, 1.0):
        mapper = make_mapper("INPUT.DETR_CROP.PROB", crop, "INPUT.MAX_SIZE_TRAIN", 200, is_train=is_train)
        sample = mapper(dataset_dict)
        assert min(sample["image"].shape[1:]) >= 1
        assert max(height * width for height, width in sizes) < 1e7
        assert (sample["height"], sample["width"]) == (height, width)


def test_no_objects_have_no_masks_rather_than_none(dataset_dict):
    dataset_dict["annotations"] = []
    instances = make_mapper("MODEL.MASK_ON", True)(dataset_dict)["instances"]
    assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (("INPUT.FORMAT", "L"), "INPUT.FORMAT"),
        (("INPUT.RANDOM_FLIP", "sideways"), "INPUT.RANDOM_FLIP"),
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"), "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
        (("INPUT.DETR_CROP.PROB", 1.5), "INPUT.DETR_CROP.PROB"),
        (("INPUT.DETR_CROP.CROP_SIDE_RANGE", (600, 384)), "INPUT.DETR_CROP.CROP_SIDE_RANGE"),
    ],
)
def test_unusable_values_are_named(options, key):
    with pytest.raises(ValueError, match=key):
        make_mapper(*options)
