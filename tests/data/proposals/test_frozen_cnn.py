"""The frozen network of a config: features of the CNN's own weights, of CNNs and of vision transformers."""

import numpy as np
import pytest
import torch
from helpers import RESNET18, tiny_cfg, tiny_model

from updetr_d2.data.proposals import PROPOSAL_REGISTRY, SourceOptions
from updetr_d2.data.proposals.frozen_cnn import FrozenCNN

timm = pytest.importorskip("timm")


def test_a_detectors_cnn_gives_what_the_detector_sees(tmp_path):
    torch.manual_seed(0)
    options = (*RESNET18, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0])
    model = tiny_model("DETR", *options).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cnn = FrozenCNN(
        tiny_cfg("DETR", *options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")), ["res4", "res5"]
    )
    assert (cnn.features, cnn.strides, cnn.channels["res5"]) == (
        ["res4", "res5"],
        {"res4": 16, "res5": 32},
        512,
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model.backbone(model.normalize(pixels))["res5"]
    torch.testing.assert_close(cnn([image])["res5"], expected)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"model": {"backbone.other": torch.zeros(1)}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"lacks \d+ parameters of the CNN"):
        FrozenCNN(tiny_cfg("DETR", *RESNET18, "MODEL.WEIGHTS", str(tmp_path / "model.pth")), ["res5"])
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS is empty"):
        FrozenCNN(tiny_cfg("DETR", *RESNET18), ["res5"])


def test_a_vision_transformer_gives_boxes_of_images_of_any_size(tmp_path):
    """Its plain weights, as timm publishes them; it has one stride only."""
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    plain = timm.create_model(name, pretrained=False).state_dict()
    weights = {f"backbone.{key}": value for key, value in plain.items()}
    torch.save({"model": weights}, tmp_path / "vit.pth")
    cfg = tiny_cfg(
        "DETR",
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name),
        *("MODEL.WEIGHTS", str(tmp_path / "vit.pth")),
    )
    source = PROPOSAL_REGISTRY.get("features")(SourceOptions(cfg=cfg))
    assert source.cnn.features == ["res4"]
    patch_embed = source.cnn.backbone.state_dict()["model.patch_embed.proj.weight"]
    assert torch.equal(patch_embed, weights["backbone.patch_embed.proj.weight"])
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    boxes, scores = source(image, {})
    assert len(boxes) > 10
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 150
    assert np.isfinite(scores).all()
