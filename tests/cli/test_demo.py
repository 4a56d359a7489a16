"""The demo: what the model finds is what the pictures and COCO files say; odd inputs do not stop it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from helpers import PANOPTIC_RESNET18, save_tiny_model, tiny_cfg
from PIL import Image
from pycocotools.coco import COCO

from updetr_d2.cli import demo
from updetr_d2.inference.video import Video, writing

SMALL_IMAGES = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96)
CATEGORY_IDS = [3, 7, 20, 21]


@pytest.fixture(name="tool", scope="module")
def _tool():
    demo.setup_logger = lambda **_: None  # handlers would outlive the captured streams of a test
    return demo


@pytest.fixture(name="photos")
def _photos(tmp_path) -> Path:
    """Four images, one of them upside down in a sub-folder, and a damaged one."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, size in {
        "a.png": (40, 60),
        "b.png": (64, 64),
        "c.jpg": (30, 90),
        "sub/a.png": (50, 70),
    }.items():
        pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return folder


def save_model(folder: Path, meta_architecture: str, *options) -> tuple[torch.nn.Module, list[str]]:
    """A tiny random model and the arguments that make the demo load it."""
    model = save_tiny_model(folder, meta_architecture, *SMALL_IMAGES, *options)
    arguments = ["--config-file", str(folder / "config.yaml"), "--output", str(folder / "out")]
    return model, [*arguments, "--score-threshold", "0"]


def register(name: str, **metadata) -> tuple[str, tuple[str]]:
    """Options that make a data set of these metadata the one that is tested on."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(**metadata)
    return ("DATASETS.TEST", (name,))


def read_output(folder: Path) -> tuple[dict, list[dict]]:
    return tuple(
        json.loads((folder / "out" / f"{name}.json").read_text()) for name in ("images", "predictions")
    )


@torch.no_grad()
def test_files_hold_what_the_model_finds_in_cocos_formats(tool, tmp_path, photos, capsys):
    to_contiguous = {category: i for i, category in enumerate(CATEGORY_IDS)}
    metadata = {"thing_classes": list("abcd"), "thing_dataset_id_to_contiguous_id": to_contiguous}
    model, arguments = save_model(tmp_path, "DETR", *register("demo_test", **metadata))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    # A folder, a pattern whose matches are in the folder, too, and one file.
    inputs = [str(photos), str(photos / "*.png"), str(photos / "c.jpg")]
    assert tool.main([*arguments, *inputs, *weights]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(f"4 images done, 1 skipped; see {tmp_path / 'out'}\n")
    assert "broken.jpg" in captured.err

    listing, predictions = read_output(tmp_path)
    names = {
        image["id"]: Path(image["file_name"]).relative_to(photos).as_posix() for image in listing["images"]
    }
    assert sorted(names.values()) == ["a.png", "b.png", "c.jpg", "sub/a.png"]
    assert listing["categories"] == [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, "abcd")]
    assert len(predictions) == 4 * 20

    # c.jpg has 90x30 px: 96x32 after resizing.
    image_id = next(i for i, name in names.items() if name == "c.jpg")
    image = Image.open(photos / "c.jpg").resize((96, 32), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = model([{"image": pixels, "height": 30, "width": 90}])[0]["instances"]
    found = [p for p in predictions if p["image_id"] == image_id]
    boxes = expected.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    np.testing.assert_allclose([p["bbox"] for p in found], boxes, atol=0.2)
    np.testing.assert_allclose([p["score"] for p in found], expected.scores, atol=2e-3)
    assert [p["category_id"] for p in found] == [CATEGORY_IDS[c] for c in expected.pred_classes]

    results = COCO(str(tmp_path / "out/images.json")).loadRes(str(tmp_path / "out/predictions.json"))
    assert len(results.anns) == len(predictions)


def test_every_image_gets_a_picture_with_boxes(tool, tmp_path, photos):
    """Files of the same name do not overwrite each other's pictures; without a data set, ids are classes."""
    _, arguments = save_model(tmp_path, "DETR")
    assert tool.main([*arguments, str(photos), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 0
    pictures = sorted((tmp_path / "out/pictures").iterdir())
    assert len(pictures) == 4
    assert {p.stem.split("_")[0] for p in pictures} == {"a", "b", "c"}
    with Image.open(tmp_path / "out/pictures/b.jpg") as picture, Image.open(photos / "b.png") as original:
        assert picture.size == (64, 64)
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(original)).mean() > 10
    listing, predictions = read_output(tmp_path)
    assert {p["category_id"] for p in predictions} <= {0, 1, 2, 3}
    assert [c["id"] for c in listing["categories"]] == [0, 1, 2, 3]


def test_scores_below_the_threshold_are_left_out(tool, tmp_path, photos):
    _, arguments = save_model(tmp_path, "DETR")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    tool.main([*arguments, str(photos / "a.png"), *weights])
    scores = sorted(p["score"] for p in read_output(tmp_path)[1])
    threshold = (scores[9] + scores[10]) / 2
    tool.main([*arguments, "--score-threshold", str(threshold), str(photos / "a.png"), *weights])
    assert sorted(p["score"] for p in read_output(tmp_path)[1]) == scores[10:]


@torch.no_grad()
def test_updetr_finds_query_patches(tool, tmp_path, photos):
    """Two boxes of one query image are two patches; each image gets the best box of each."""
    model, arguments = save_model(tmp_path, "UPDETR", "INPUT.QUERY_PATCH.SIZE", 64)
    query = ["--query-image", str(photos / "b.png")]
    boxes = ["--query-box", "0", "0", "32", "64", "--query-box", "10", "20", "60", "50"]
    inputs = [str(photos / "b.png"), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert tool.main([*arguments, *query, *boxes, *inputs]) == 0
    _, predictions = read_output(tmp_path)
    assert [p["category_id"] for p in predictions] == [1, 2]

    image = Image.open(photos / "b.png")
    patches = [
        image.crop(b).resize((64, 64), Image.Resampling.BILINEAR) for b in ((0, 0, 32, 64), (10, 20, 60, 50))
    ]
    to_tensor = lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # noqa: E731
    sample = {"image": to_tensor(image), "patches": torch.stack([to_tensor(p) for p in patches])}
    best = model([sample])[0]["instances"][:2]
    expected = best.pred_boxes.tensor.clone()
    expected[:, 2:] -= expected[:, :2]
    np.testing.assert_allclose([p["bbox"] for p in predictions], expected, atol=0.2)
    with Image.open(tmp_path / "out/pictures/b.jpg") as picture:
        assert picture.width > picture.height  # the patches stand beside the image

    # Nothing is that sure: no boxes, but a picture all the same.
    assert tool.main([*arguments, "--score-threshold", "1.1", *query, *inputs]) == 0
    assert read_output(tmp_path)[1] == []


def test_one_shot_models_find_the_class_of_the_query(tool, tmp_path, photos):
    """Two query images are two views of one class; all boxes above the threshold count."""
    options = ("MODEL.DETR.NUM_CLASSES", 1, "INPUT.QUERY_PATCH.SIZE", 64)
    _, arguments = save_model(tmp_path, "OneShotDETR", *options)
    query = ["--query-image", str(photos / "b.png"), "--query-image", str(photos / "c.jpg")]
    inputs = [str(photos / "a.png"), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert tool.main([*arguments, *query, *inputs]) == 0
    listing, predictions = read_output(tmp_path)
    assert listing["categories"] == [{"id": 1, "name": "query"}]
    assert [p["category_id"] for p in predictions] == [1] * 20
    with Image.open(tmp_path / "out/pictures/a.jpg") as picture:
        assert picture.size == (60, 40)


def test_panoptic_models_get_overlays_and_masks(tool, tmp_path, photos):
    """With Detectron2's "separated" metadata, whose numbers of stuff classes are not the model's."""
    options = (*PANOPTIC_RESNET18, "MODEL.MASK_HEAD.SCORE_THRESHOLD", 0.0)
    options += register(
        "demo_test_separated",
        evaluator_type="coco_panoptic_seg",
        thing_classes=["a", "b"],
        stuff_classes=["things", "c", "d"],
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1},
        stuff_dataset_id_to_contiguous_id={0: 0, 20: 1, 21: 2},
    )
    _, arguments = save_model(tmp_path, "PanopticDETR", *options)
    assert tool.main([*arguments, str(photos / "a.png"), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 0
    for kind in ("pictures", "panoptic"):
        with Image.open(tmp_path / "out" / kind / "a.jpg") as picture:
            assert picture.size == (60, 40)
    listing, predictions = read_output(tmp_path)
    assert listing["categories"] == [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, "abcd")]
    assert all(p["category_id"] in CATEGORY_IDS for p in predictions)
    assert all(p["segmentation"]["size"] == [40, 60] for p in predictions)


@torch.no_grad()
def test_detectron2s_default_predictor_works(tmp_path, photos):
    """It takes BGR images and resizes by INPUT.MIN_SIZE_TEST; the model wants RGB."""
    model, _ = save_model(tmp_path, "DETR")
    cfg = tiny_cfg("DETR", *SMALL_IMAGES, "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    rgb = np.asarray(Image.open(photos / "a.png"))
    found = DefaultPredictor(cfg)(rgb[:, :, ::-1])["instances"]
    image = Image.fromarray(rgb).resize((96, 64), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = model([{"image": pixels, "height": 40, "width": 60}])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.image_size == (40, 60)


@pytest.mark.parametrize(
    ("meta_architecture", "more", "message"),
    [
        ("DETR", ["nowhere.jpg"], "nowhere.jpg is no file, folder or pattern"),
        ("DETR", ["--query-image", "b.png", "b.png"], "--query-image is for UPDETR"),
        ("UPDETR", ["b.png"], "needs --query-image"),
        ("UPDETR", ["--query-image", "b.png"] * 6 + ["b.png"], "1 to 5 patches"),
        ("UPDETR", ["--query-image", "b.png", "--query-box", *["0", "0", "65", "9"], "b.png"], "is no box"),
        ("UPDETR", ["--query-image", "broken.jpg", "b.png"], "broken.jpg"),
        ("DETR", ["b.png", "MODEL.DETR.NUM_CLASSES", "0"], "is 0 and cannot be taken from DATASETS.TEST"),
        ("DETR", ["b.png", "MODEL.NO_SUCH_KEY", "1"], "MODEL.NO_SUCH_KEY"),
        ("DETR", ["b.png", "MODEL.DETR.DEC_LAYERS", "3"], "parameters, such as transformer.decoder.layers.2"),
        ("DETR", ["b.png", "MODEL.DETR.PRE_NORM", "True"], "MODEL.DETR.PRE_NORM"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    tool, tmp_path, photos, capsys, monkeypatch, meta_architecture, more, message
):
    _, arguments = save_model(tmp_path, meta_architecture)
    monkeypatch.chdir(photos)
    options = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")] if "nowhere.jpg" not in more else []
    assert tool.main([*arguments, *more, *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("content", [None, "MODEL:\n  NO_SUCH_KEY: 1\n"], ids=["missing", "wrong key"])
def test_config_files_that_cannot_be_used_are_named(tool, tmp_path, photos, capsys, content):
    path = tmp_path / "other.yaml"
    if content is not None:
        path.write_text(content)
    assert tool.main(["--config-file", str(path), str(photos / "a.png")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: ") and ("NO_SUCH_KEY" in error) == (content is not None)


def test_an_empty_result_is_a_failure(tool, tmp_path, photos):
    _, arguments = save_model(tmp_path, "DETR")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert tool.main([*arguments, str(photos / "broken.jpg"), *weights]) == 1


def write_clip(path: Path, count: int = 3) -> None:
    rng = np.random.default_rng(1)
    with writing(path, fps=10) as frames:
        for _ in range(count):
            frames.add(rng.integers(256, size=(48, 64, 3), dtype=np.uint8))


@torch.no_grad()
def test_videos_are_drawn_frame_by_frame(tool, tmp_path, photos, capsys):
    _, arguments = save_model(tmp_path, "DETR")
    write_clip(tmp_path / "a.mp4", 5)
    options = ["--video-input", str(tmp_path / "a.mp4"), "--every", "2", str(photos / "a.png")]
    assert tool.main([*arguments, *options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 0
    assert "4 images done, 0 skipped" in capsys.readouterr().out
    listing, predictions = read_output(tmp_path)
    told = [(i["id"], Path(i["file_name"]).name, i.get("frame_index")) for i in listing["images"]]
    assert told == [(1, "a.png", None), (2, "a.mp4", 0), (3, "a.mp4", 2), (4, "a.mp4", 4)]
    assert {each["image_id"] for each in predictions} == {1, 2, 3, 4}
    # The name of a picture is taken, so the video gets another one.
    drawn = Video(str(tmp_path / "out/videos/a_2.mp4"))
    assert (drawn.num_frames, drawn.fps) == (3, 5)
    first = next(frame for _, frame in Video(str(tmp_path / "a.mp4")).frames())
    predictor = DefaultPredictor(
        tiny_cfg("DETR", *SMALL_IMAGES, "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    )
    expected = predictor(first[..., ::-1])["instances"].scores
    found = [each["score"] for each in predictions if each["image_id"] == 2]
    assert np.allclose(sorted(found), sorted(expected.tolist()), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--video-input", "none.mp4"], "There is no video none.mp4."),
        (["--video-input", "empty.mp4"], "empty.mp4 is empty, damaged or no video"),
        (["--video-input", "good.mp4", "--every", "0"], "--every is 0; it must be at least 1."),
        ([], "Name images"),
    ],
)
def test_what_is_wrong_with_a_video_is_said_in_a_sentence(
    tool, tmp_path, monkeypatch, capsys, options, message
):
    _, arguments = save_model(tmp_path, "DETR")
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    write_clip(Path("good.mp4"))
    assert tool.main([*arguments, *options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("out").exists()
