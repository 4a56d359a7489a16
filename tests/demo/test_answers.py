"""What the demo page answers: the model's own boxes and scores, and a sentence for everything that is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PANOPTIC_RESNET18, save_tiny_model
from PIL import Image

from demo.answers import (
    PICTURE_SIDE,
    DemoModel,
    VisitorError,
    cut_query,
    detect,
    find_similar,
    locate_patch,
    pixels,
    preview_query,
)

OPTIONS = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "INPUT.QUERY_PATCH.SIZE", 64)
OPTIONS += ("INPUT.QUERY_PATCH.MIN_SIZE", 16, "INPUT.MIN_IMAGE_SIDE", 32)
TABS = {"UPDETR": "patches", "DETR": "detection", "PanopticDETR": "panoptic", "OneShotDETR": "one_shot"}
NO_BOX = (None, None, None, None)


@pytest.fixture(name="photo")
def _photo(tmp_path):
    """A file of 96x64 px, the size that the model wants."""
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def load(folder, meta_architecture, *options) -> tuple[torch.nn.Module, DemoModel]:
    raw = save_tiny_model(folder, meta_architecture, *OPTIONS, *options)
    weights = ["MODEL.WEIGHTS", str(folder / "model.pth")]
    return raw, DemoModel.load(str(folder / "config.yaml"), weights, tab=TABS[meta_architecture])


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def tensor(picture) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@torch.no_grad()
def test_the_table_holds_the_guesses_of_the_model(tmp_path, photo):
    raw, model = load(tmp_path, "UPDETR")
    picture, table = locate_patch(model, photo, 10, 20, 50, 60, None, 3)
    image = Image.open(photo)
    patch = image.crop((10, 20, 50, 60)).resize((64, 64), Image.Resampling.BILINEAR)
    found = raw([{"image": tensor(image), "patches": tensor(patch)[None]}])[0]["instances"][:3]

    header, _, *rows = rows_of(table)
    assert header == ["guess", "score", "x0", "y0", "x1", "y1", "IoU"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    np.testing.assert_allclose([float(row[1]) for row in rows], found.scores, atol=2e-3)
    boxes = found.pred_boxes.tensor
    np.testing.assert_allclose([[float(v) for v in row[2:6]] for row in rows], boxes, atol=0.7)
    overlap = (
        boxes[:, 2:].clamp(max=torch.tensor([50, 60])) - boxes[:, :2].clamp(min=torch.tensor([10, 20]))
    ).clamp(min=0)
    intersection = overlap.prod(dim=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + 40 * 40 - intersection
    np.testing.assert_allclose([float(row[6]) for row in rows], intersection / union, atol=0.02)
    # Wide as the photo, and with colours that are not in it.
    assert abs(picture.shape[1] / picture.shape[0] - 96 / 64) < 0.02
    assert (picture == (255, 0, 0)).all(axis=2).sum() > 100


def test_another_picture_is_searched_if_there_is_one(tmp_path, photo):
    _, model = load(tmp_path, "UPDETR")
    Image.new("RGB", (50, 100), (0, 0, 255)).save(tmp_path / "other.png")
    picture, table = locate_patch(model, photo, 10, 20, 50, 60, str(tmp_path / "other.png"), 1)
    assert picture.shape[0] == 2 * picture.shape[1]
    assert (picture == (0, 0, 255)).all(axis=2).mean() > 0.3
    assert rows_of(table)[0][-1] == "y1"  # the true place is unknown
    assert len(rows_of(table)) == 3


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (NO_BOX, "There is no box yet"),
        ((0, 0, 0, 0), "There is no box yet"),
        ((1, 2, 3, None), "There is no box yet"),
        ((10, 10, 20, 40), "10x30 px, which is too small: patches have at least 16 px"),
        ((40, 40, 10, 10), "40 40 10 10 is no box"),
        ((0, 0, 97, 64), "inside an image of 96x64 px"),
    ],
)
def test_useless_boxes_are_answered_in_a_sentence(tmp_path, photo, box, message):
    _, model = load(tmp_path, "UPDETR")
    with pytest.raises(VisitorError, match=message):
        locate_patch(model, photo, *box, None, 1)
    assert preview_query(model, photo, *box) is None


def test_pictures_that_cannot_be_used_are_answered_in_a_sentence(tmp_path, photo):
    _, model = load(tmp_path, "UPDETR")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    broken = str(tmp_path / "broken.jpg")
    with pytest.raises(VisitorError, match="There is no picture yet"):
        locate_patch(model, None, 10, 20, 50, 60, None, 1)
    with pytest.raises(VisitorError, match=r"The picture cannot be used: broken\.jpg "):
        locate_patch(model, broken, 10, 20, 50, 60, None, 1)
    with pytest.raises(VisitorError, match="The other picture cannot be used"):
        locate_patch(model, photo, 10, 20, 50, 60, broken, 1)
    assert preview_query(model, broken, 10, 20, 50, 60) is None


def test_the_preview_is_the_patch_that_the_model_gets(tmp_path, photo):
    _, model = load(tmp_path, "UPDETR")
    patch = preview_query(model, photo, 10, 20, 74, 64)
    expected = Image.open(photo).crop((10, 20, 74, 64)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(patch.astype(int) - np.asarray(expected)).max() <= 1


def test_detections_are_listed_from_the_best_on(tmp_path, photo):
    _, model = load(tmp_path, "DETR")
    model.predictor.classes.names = ["a", "b|c", "d", "e"]
    picture, table = detect(model, "pictures", photo, 0.0)
    header, _, *rows = rows_of(table)
    assert header[:2] == ["class", "score"]
    scores = [float(row[1]) for row in rows]
    assert len(scores) == 20 and scores == sorted(scores, reverse=True)
    assert {row[0] for row in rows} <= {"a", "b/c", "d", "e"}
    assert min(picture.shape[:2]) >= PICTURE_SIDE  # small pictures are drawn large enough to read

    _, nothing = detect(model, "pictures", photo, 0.999)
    assert f"Nothing has a score of 1.00 or more; the highest is {scores[0]:.2f}." in nothing


@pytest.mark.parametrize("names", [[], ["a"]], ids=["nothing is named", "one class is named"])
def test_segments_without_a_data_set_have_numbers_for_names(tmp_path, photo, names):
    """The config of a model that came without its data names none that is here, or one of other classes."""
    options = (*PANOPTIC_RESNET18, "MODEL.MASK_HEAD.SCORE_THRESHOLD", 0.0)
    _, model = load(tmp_path, "PanopticDETR", *options, "DATASETS.TEST", ("coco_panoptic:/no@/no@/no",))
    model.predictor.classes.names = names
    picture, table = detect(model, "panoptic", photo, 0.0)
    assert picture.shape == (640, 960, 3)
    enlarged = np.asarray(Image.open(photo).resize((960, 640)))
    assert np.abs(picture.astype(int) - enlarged).mean() > 10  # segments are painted over
    allowed = [*names, *(f"class {i}" for i in range(len(names), 4))]
    assert {row[0] for row in rows_of(table)[2:]} <= set(allowed)


@torch.no_grad()
def test_one_shot_queries_are_a_box_or_a_whole_picture(tmp_path, photo):
    raw, model = load(tmp_path, "OneShotDETR", "MODEL.DETR.NUM_CLASSES", 1)
    whole = (0, 0, 96, 64)
    for box, crop in ((NO_BOX, whole), ((0, 0, 0, 0), whole), ((0, 0, 40, 64), (0, 0, 40, 64))):
        _, table = find_similar(model, photo, *box, photo, 0.0)
        patch = Image.open(photo).crop(crop).resize((64, 64), Image.Resampling.BILINEAR)
        sample = {"image": tensor(Image.open(photo)), "patches": tensor(patch)[None]}
        scores = raw([sample])[0]["instances"].scores
        np.testing.assert_allclose(
            [float(row[1]) for row in rows_of(table)[2:]], sorted(scores)[::-1], atol=2e-3
        )
    with pytest.raises(VisitorError, match="There is no picture to search yet"):
        find_similar(model, photo, *NO_BOX, None, 0.5)
    with pytest.raises(VisitorError, match="There is no box yet"):
        cut_query(model, np.zeros((64, 96, 3), np.uint8), NO_BOX)


def test_queries_have_the_context_that_the_model_was_trained_with(tmp_path, photo):
    options = ("MODEL.DETR.NUM_CLASSES", 1, "DATASETS.ONESHOT.CONTEXT_MARGIN", 0.5)
    _, model = load(tmp_path, "OneShotDETR", *options)
    expected = Image.open(photo).crop((0, 8, 80, 56)).resize((64, 64), Image.Resampling.BILINEAR)
    patch = cut_query(model, np.asarray(Image.open(photo)), (20, 20, 60, 44))
    assert np.abs(patch.astype(int) - np.asarray(expected)).max() <= 1


def test_coordinates_are_whole_pixels():
    assert pixels(torch.tensor([-0.3, 0.2, 12.6, 127.9])) == ["0", "0", "13", "128"]


def test_models_of_another_kind_are_refused(tmp_path):
    save_tiny_model(tmp_path, "DETR")
    with pytest.raises(ValueError, match=r"is DETR; here it must be UPDETR\."):
        DemoModel.load(str(tmp_path / "config.yaml"), [], tab="patches")


def test_examples_come_from_the_test_set_with_boxes_inside(tmp_path, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.open(photo).save(folder / f"{i}.png")
    _, model = load(tmp_path, "UPDETR", "DATASETS.TEST", (f"folder:{folder}",))
    files = model.example_files(2)
    assert [name.rsplit("/", 1)[1] for name in files] == ["0.png", "1.png"]
    for name in files:
        box = model.example_box(name)
        assert box == model.example_box(name)
        x0, y0, x1, y1 = box
        assert 0 <= x0 <= x1 - 16 and x1 <= 96 and 0 <= y0 <= y1 - 16 and y1 <= 64

    model.cfg.defrost()
    model.cfg.DATASETS.TEST = ("folder:/nowhere",)
    assert model.example_files(2) == []


def test_the_box_of_a_labeled_example_is_an_object(tmp_path, photo):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 30, 20], "area": 600, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "photo.png", "width": 96, "height": 64}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    _, model = load(tmp_path, "UPDETR", "DATASETS.TEST", (f"coco:{tmp_path / 'labels.json'}@{tmp_path}",))
    assert model.example_files(2) == [photo]
    assert model.example_box(f"/cache/of/gradio/{Path(photo).name}") == [5, 6, 35, 26]
