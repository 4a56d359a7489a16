"""Export: onnxruntime gives PyTorch's logits and boxes for batches and sizes that the export did not see."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import DINO, random_sample, tiny_cfg, tiny_model
from PIL import Image

from updetr_d2.cli import export

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

OPTIONS = ("MODEL.DETR.PRE_NORM", True, "MODEL.DETR.ENC_LAYERS", 1, "INPUT.FORMAT", "BGR")


@pytest.fixture(name="tool", scope="module")
def _tool():
    export.setup_logger = lambda **_: None  # handlers would outlive the captured streams of a test
    return export


def save_model(folder: Path, meta_architecture: str, *options) -> torch.nn.Module:
    """Write config.yaml and model.pth of a tiny random model."""
    torch.manual_seed(0)
    model = tiny_model(meta_architecture, *options)
    torch.save({"model": model.state_dict(), "meta_architecture": meta_architecture}, folder / "model.pth")
    (folder / "config.yaml").write_text(tiny_cfg(meta_architecture, *options).dump())
    return model.eval()


def command(folder: Path) -> list[str]:
    arguments = ["--config-file", str(folder / "config.yaml"), "--output", str(folder / "sub/model.onnx")]
    return [*arguments, "MODEL.WEIGHTS", str(folder / "model.pth")]


@pytest.fixture(name="exported", scope="module")
def _exported(tool, tmp_path_factory):
    """The model and an onnxruntime session of its exported file."""
    folder = tmp_path_factory.mktemp("export")
    categories = [{"id": 2 * i, "name": name} for i, name in enumerate("abcd", start=1)]
    image = {"id": 1, "file_name": "1.png", "height": 8, "width": 8}
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    annotations = folder / "val.json"
    annotations.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    model = save_model(folder, "DETR", *OPTIONS, "DATASETS.TEST", (f"coco:{annotations}@{folder}",))
    assert tool.main(command(folder)) == 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return model, onnxruntime.InferenceSession(folder / "sub/model.onnx", options)


def check_equality(model, session, sizes):
    """ONNX Runtime against the ordinary forward pass of the model, which normalises and pads by itself."""
    samples = [random_sample(height, width) for height, width in sizes]
    heads = model.forward_heads(samples)
    height, width = np.max(sizes, axis=0)
    images = np.full((len(samples), 3, height, width), 77, dtype=np.float32)  # the padding may hold anything
    for image, sample, (h, w) in zip(images, samples, sizes):
        image[:, :h, :w] = sample["image"].numpy()
    logits, boxes = session.run(
        ["logits", "boxes"], {"images": images, "sizes": np.array(sizes, dtype=np.int64)}
    )
    np.testing.assert_allclose(logits, heads["pred_logits"][-1].numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(boxes, heads["pred_boxes"][-1].numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "sizes",
    [[(128, 160)], [(64, 64)], [(70, 50), (64, 161), (97, 96)], [(33, 200)] * 4],
    ids=["one", "small", "three of different sizes", "four"],
)
def test_onnxruntime_equals_pytorch_for_any_batch_and_size(exported, sizes):
    check_equality(*exported, sizes)


@pytest.mark.slow
def test_the_file_says_how_to_prepare_images(exported):
    _, session = exported
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["input_format"] == "BGR"
    assert (metadata["min_size_test"], metadata["max_size_test"]) == ("800", "1333")
    assert metadata["size_divisibility"] == "1"
    assert metadata["activation"] == "softmax"
    assert json.loads(metadata["classes"]) == ["a", "b", "c", "d"]
    images, sizes = session.get_inputs()
    assert (images.type, images.shape[1]) == ("tensor(float)", 3)
    assert (sizes.type, sizes.shape[1]) == ("tensor(int64)", 2)
    assert all(isinstance(images.shape[axis], str) for axis in (0, 2, 3))


def test_models_of_other_kinds_and_incomplete_weights_are_refused(tool, tmp_path, capsys):
    save_model(tmp_path, "UPDETR")
    assert tool.main(command(tmp_path)) == 1
    assert "Only MODEL.META_ARCHITECTURE DETR can be exported, not UPDETR" in capsys.readouterr().err

    # The same checkpoint for detection: its class head is one of patches.
    assert (
        tool.main([*command(tmp_path), "MODEL.META_ARCHITECTURE", "DETR", "MODEL.DETR.NUM_CLASSES", "2"]) == 1
    )
    assert "lacks 2 parameters, such as class_embed.weight" in capsys.readouterr().err

    assert tool.main([*command(tmp_path), "MODEL.WEIGHTS", ""]) == 1
    assert "MODEL.WEIGHTS is empty" in capsys.readouterr().err
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 2), (1, 2, 1), ((5, 3), (2, 1), 1)]
)
@torch.no_grad()
def test_same_padding_of_tensorflow_is_fixed_for_the_export(kernel, stride, dilation):
    layers = pytest.importorskip("timm.layers")
    options = {"stride": stride, "dilation": dilation, "groups": 2}
    conv = layers.Conv2dSame(4, 4, kernel, **options)
    images = torch.rand(2, 4, 64, 32)
    torch.testing.assert_close(export._with_fixed_padding(conv)(images), conv(images))


def test_proposals_thinned_out_are_refused_with_the_key(tool, tmp_path, capsys):
    save_model(tmp_path, "DETR", *DINO, "MODEL.DEFORMABLE.PROPOSAL_NMS_THRESH", 0.7)
    assert tool.main(command(tmp_path)) == 1
    assert "add MODEL.DEFORMABLE.PROPOSAL_NMS_THRESH 1.0" in capsys.readouterr().err


@pytest.mark.slow
@torch.no_grad()
def test_a_dino_is_exported_too(tool, tmp_path):
    layers = ("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1)  # tracing takes long
    model = save_model(tmp_path, "DETR", *DINO, *layers)
    assert tool.main(command(tmp_path)) == 0
    session = onnxruntime.InferenceSession(tmp_path / "sub/model.onnx")
    assert session.get_modelmeta().custom_metadata_map["activation"] == "sigmoid"
    for sizes in ([(64, 96)], [(70, 50), (64, 161), (97, 96)]):
        check_equality(model, session, sizes)
