"""From a run or a recipe to boxes: what images it takes, what it says of them, and what it refuses."""

import warnings

import numpy as np
import pytest
import torch
from helpers import PANOPTIC_RESNET18, save_tiny_model, tiny_cfg
from PIL import Image

import updetr_d2
from updetr_d2 import Predictor, UnusableImageError

SMALL = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "INPUT.QUERY_PATCH.SIZE", 64)


@pytest.fixture(name="photo")
def _photo(tmp_path):
    """A file of 96x64 px, the size that the model wants."""
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def make(folder, meta_architecture, *options) -> tuple[torch.nn.Module, Predictor]:
    model = save_tiny_model(folder, meta_architecture, *SMALL, *options)
    return model, Predictor.from_config(folder / "config.yaml", weights=folder / "model.pth")


def to_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@torch.no_grad()
def test_paths_pil_images_arrays_and_lists_give_what_the_model_gives(tmp_path, photo):
    model, predictor = make(tmp_path, "DETR")
    image = Image.open(photo)
    expected = model([{"image": to_tensor(image), "height": 64, "width": 96}])[0]["instances"]
    for each in (str(photo), photo, image, np.asarray(image)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as PyTorch's of arrays that are read-only
            found = predictor(each)
        torch.testing.assert_close(found.instances.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found["instances"].scores, expected.scores)
        assert found.class_names == ["class 0", "class 1", "class 2", "class 3"]
        assert found.panoptic_seg is None
    several = predictor([photo, np.asarray(image)[:32]])
    assert [each.instances.image_size for each in several] == [(64, 96), (32, 96)]


def test_names_come_from_the_checkpoint_where_the_data_set_is_not_there(tmp_path, photo):
    make(tmp_path, "DETR")
    checkpoint = torch.load(tmp_path / "model.pth", weights_only=True)
    torch.save({**checkpoint, "run": {"config": {}, "classes": ["a", "b", "c", "d"]}}, tmp_path / "model.pth")
    predictor = Predictor.from_config(tmp_path / "config.yaml", weights=tmp_path / "model.pth")
    assert predictor(photo).class_names == ["a", "b", "c", "d"]


def test_the_threshold_keeps_what_is_at_least_as_sure(tmp_path, photo):
    _, predictor = make(tmp_path, "DETR")
    scores = predictor(photo).instances.scores
    threshold = scores.median().item()
    kept = predictor(photo, threshold=threshold).instances.scores
    assert 0 < len(kept) < len(scores)
    torch.testing.assert_close(kept, scores[scores >= threshold])


@pytest.mark.parametrize("meta_architecture", ["UPDETR", "OneShotDETR"])
def test_models_that_look_for_patches_say_so(tmp_path, photo, meta_architecture):
    options = ("MODEL.DETR.NUM_CLASSES", 1) if meta_architecture == "OneShotDETR" else ()
    _, predictor = make(tmp_path, meta_architecture, *options)
    for nothing in (None, []):
        with pytest.raises(ValueError, match=rf"A {meta_architecture} looks for query patches: call it with"):
            predictor(photo, nothing)


def test_detectors_take_no_patches(tmp_path, photo):
    _, predictor = make(tmp_path, "DETR")
    with pytest.raises(ValueError, match="A DETR finds the classes it has learnt"):
        predictor(photo, [photo])


@torch.no_grad()
def test_patches_are_images_of_any_size(tmp_path, photo):
    """Each is resized as in training; the same as an array goes in as it is."""
    model, predictor = make(tmp_path, "UPDETR")
    image = Image.open(photo)
    patches = [
        image.crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        for box in ((0, 0, 30, 40), (20, 9, 90, 60))
    ]
    sample = {"image": to_tensor(image), "patches": torch.stack([to_tensor(each) for each in patches])}
    expected = model([sample])[0]["instances"].pred_boxes.tensor
    for given in (patches, np.stack([np.array(each) for each in patches])):
        found = predictor(image, given)
        torch.testing.assert_close(found.instances.pred_boxes.tensor, expected)
    assert found.class_names[:2] == ["patch 1", "patch 2"]
    resized = predictor(image, [image.crop((0, 0, 30, 40)), image.crop((20, 9, 90, 60))])
    torch.testing.assert_close(resized.instances.pred_boxes.tensor, expected, atol=0.5, rtol=0)


def test_panoptic_models_give_segments(tmp_path, photo):
    options = (*PANOPTIC_RESNET18, "MODEL.MASK_HEAD.SCORE_THRESHOLD", 0.0)
    _, predictor = make(tmp_path, "PanopticDETR", *options)
    segments, infos = predictor(photo).panoptic_seg
    assert segments.shape == (64, 96)
    assert {info["id"] for info in infos} == set(segments.unique().tolist()) - {0}


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), torch.zeros(3, 8, 8)],
    ids=["gray", "float", "RGBA", "tensor"],
)
def test_other_arrays_are_refused(tmp_path, image):
    _, predictor = make(tmp_path, "DETR")
    with pytest.raises(ValueError, match=r"is a path, a PIL image or an RGB uint8 array \[H, W, 3\], not"):
        predictor(image)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    _, predictor = make(tmp_path, "DETR")
    with pytest.raises(UnusableImageError, match=r"broken\.jpg"):
        predictor(tmp_path / "broken.jpg")


def test_a_run_gives_its_final_model_or_the_last_checkpoint(tmp_path, photo):
    model = save_tiny_model(tmp_path, "DETR", *SMALL)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        Predictor.from_run(tmp_path)
    (tmp_path / "model.pth").rename(tmp_path / "model_0000009.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    last = Predictor.from_run(tmp_path)
    assert torch.equal(last.model.query_embed.weight, model.query_embed.weight)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "model_final.pth")
    assert not Predictor.from_run(str(tmp_path)).model.query_embed.weight.any()
    assert Predictor.from_run(tmp_path, options=["INPUT.MIN_SIZE_TEST", 48]).cfg.INPUT.MIN_SIZE_TEST == 48


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no OUTPUT_DIR of a run"):
        Predictor.from_run(tmp_path / "nothing")


def test_recipes_are_found_by_name(tmp_path):
    """The options make the recipe's model a tiny one."""
    cfg = tiny_cfg("DETR", "MODEL.DETR.NUM_CLASSES", 20, "MODEL.DETR.PRE_NORM", True)
    torch.save({"model": updetr_d2.modeling.DETR(cfg).state_dict()}, tmp_path / "model.pth")
    detr = cfg.MODEL.DETR
    options = ["MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, "MODEL.DEVICE", "cpu"]
    for key in (
        "NUM_QUERIES",
        "HIDDEN_DIM",
        "NHEADS",
        "ENC_LAYERS",
        "DEC_LAYERS",
        "DIM_FEEDFORWARD",
        "PRE_NORM",
    ):
        options += [f"MODEL.DETR.{key}", detr[key]]
    predictor = Predictor.from_config(
        "voc/updetr_r50_voc_150ep.yaml", weights=tmp_path / "model.pth", options=options
    )
    assert predictor.model.num_classes == 20
    assert predictor.cfg.DATASETS.TEST == ("voc_2007_test",)
    with pytest.raises(ValueError, match=r"voc/updetr_r50_voc_150ep\.yaml"):
        Predictor.from_config("voc/updetr_r50_voc_15ep.yaml", weights=tmp_path / "model.pth")


def test_the_front_door_holds_what_it_names():
    assert all(getattr(updetr_d2, name) is not None for name in updetr_d2.__all__)
    cfg = tiny_cfg("UPDETR")
    assert type(updetr_d2.build_mapper(cfg, is_train=True)).__name__ == "QueryPatchDatasetMapper"
    assert type(updetr_d2.build_evaluator(cfg, "any", "folder")).__name__ == "QueryPatchEvaluator"
