"""Vision transformers as backbones: timm's keys and numbers, any image size, nothing of the padding, frozen."""

import copy

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.utils.env import seed_all_rng
from helpers import DEFORMABLE, DINO, TWO_STAGE, random_sample, tiny_cfg, tiny_model
from torch import nn

from updetr_d2.checkpoint.conversions import convert
from updetr_d2.cli.export import export_onnx
from updetr_d2.config.build import arguments_as_keys
from updetr_d2.engine.optimizer import build_optimizer, layer_of
from updetr_d2.modeling.vit_backbone import VisionTransformerBackbone

timm = pytest.importorskip("timm")

DINOV2 = "vit_small_patch14_reg4_dinov2"
DINOV3 = "vit_tiny_patch16_dinov3_qkvb"
LEVELS = ["res3", "res4", "res5"]

# Options that put a small DINOv3 in the place of the patchify backbone.
VIT = (
    *("MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.TIMM.NAME", DINOV3),
    *("MODEL.TIMM.OUT_FEATURES", ["last_feat", *LEVELS], "MODEL.TIMM.PYRAMID_CHANNELS", 32),
    *("MODEL.DEFORMABLE.IN_FEATURES", LEVELS, "INPUT.QUERY_PATCH.SIZE", 64),
)


@pytest.mark.parametrize(
    ("name", "side", "strides", "channels"),
    [
        (DINOV3, 96, {"last_feat": 16, "res2": 4, "res3": 8, "res4": 16, "res5": 32}, 192),
        (DINOV2, 84, {"last_feat": 14, "res2": 3.5, "res3": 7, "res4": 14, "res5": 28}, 384),
    ],
)
def test_features_of_images_of_any_size(name, side, strides, channels):
    cfg = tiny_cfg("DETR", *VIT, "MODEL.TIMM.NAME", name, "MODEL.TIMM.OUT_FEATURES", list(strides))
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    assert {feature: shape.stride for feature, shape in shapes.items()} == strides
    assert backbone.size_divisibility == strides["res5"]
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, side, 2 * side))
    for feature, stride in strides.items():
        assert shapes[feature].channels == (channels if feature == "last_feat" else 32)
        expected = (1, shapes[feature].channels, side / stride, 2 * side / stride)
        assert tuple(features[feature].shape) == expected


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", DINOV3])
def test_plain_timm_weights_convert_and_give_the_same_tokens(name):
    plain = timm.create_model(name, pretrained=False).eval()
    side = plain.patch_embed.img_size[0]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = nn.Module()
    model.backbone = VisionTransformerBackbone(name=name, out_features=["last_feat"]).eval()
    converted, report = convert(plain.state_dict(), source="timm")
    result = model.load_state_dict(converted["model"], strict=False)
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert "no place for it" not in dict(report.dropped).values()
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = plain.forward_features(images)[:, plain.num_prefix_tokens :]
        feature = model.backbone(images)["last_feat"]
    torch.testing.assert_close(feature.flatten(2).mT, tokens, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_features_of_an_image_do_not_depend_on_its_batch_mates(name):
    backbone = VisionTransformerBackbone(name=name, out_features=["last_feat", *LEVELS], pyramid_channels=16)
    for parameter in backbone.parameters():  # the norms of a fresh pyramid would hide what they add
        parameter.add_(0.1 * torch.randn_like(parameter))
    step = backbone.size_divisibility
    sizes = [(2 * step - 5, 3 * step - 3), (4 * step, 4 * step), (2 * step, 3 * step), (step, 2 * step)]
    batch = torch.zeros(4, 3, 4 * step, 4 * step)
    for image, (height, width) in zip(batch, sizes):
        image[:, :height, :width] = torch.randn(3, height, width)
    together = backbone(batch, sizes)
    for i, (height, width) in enumerate(sizes):
        rows, columns = -(-height // step) * step, -(-width // step) * step
        alone = backbone(batch[i : i + 1, :, :rows, :columns])
        for feature, stride in backbone._out_feature_strides.items():
            own = together[feature][i, :, : rows // stride, : columns // stride]
            torch.testing.assert_close(own, alone[feature][0], rtol=1e-4, atol=1e-4)
            beyond = together[feature][i].abs().sum() - own.abs().sum()
            assert float(beyond) == pytest.approx(0.0, abs=1e-2)


@torch.no_grad()
def test_what_detr_finds_does_not_depend_on_batch_mates():
    seed_all_rng(0)
    model = tiny_model("DETR", *VIT).eval()
    small, large = random_sample(50, 90), random_sample(128, 128)
    alone, together = model.forward_heads([small]), model.forward_heads([small, large])
    for name, values in alone.items():
        torch.testing.assert_close(together[name][:, :1], values, rtol=1e-4, atol=1e-4)


DETECTORS = {
    "DETR": (),
    "Deformable DETR": (*DEFORMABLE, "MODEL.DEFORMABLE.NUM_LEVELS", 4),
    "two stages": (*TWO_STAGE, "MODEL.DEFORMABLE.NUM_LEVELS", 4),
    "DINO": (*DINO, "MODEL.DEFORMABLE.NUM_LEVELS", 4),
    "UP-DETR": ("MODEL.META_ARCHITECTURE", "UPDETR", "MODEL.DETR.IN_FEATURE", "last_feat"),
    "UP-DETR on DINO": (
        *(*DINO, "MODEL.DEFORMABLE.NUM_LEVELS", 4),
        *("MODEL.META_ARCHITECTURE", "UPDETR", "MODEL.DETR.IN_FEATURE", "last_feat"),
    ),
}


@pytest.mark.parametrize("detector", DETECTORS)
def test_detectors_train_the_pyramid_and_leave_the_transformer_of_the_backbone_alone(detector):
    options = DETECTORS[detector]
    meta_architecture = "UPDETR" if "UPDETR" in options else "DETR"
    single = "MODEL.TRANSFORMER.NAME" not in options
    features = (
        ["last_feat"]
        if single and meta_architecture == "UPDETR"
        else (["res5"] if single else ["last_feat", *LEVELS])
    )
    options = (*options, *VIT, "MODEL.TIMM.OUT_FEATURES", features)
    model = tiny_model(meta_architecture, *options)
    num_patches = 2 if meta_architecture == "UPDETR" else None
    samples = [random_sample(64, 96, num_patches=num_patches), random_sample(40, 70, num_patches=num_patches)]
    sum(model(samples).values()).backward()
    for name, parameter in model.named_parameters():
        of_vit = name.startswith("backbone.") and not name.startswith("backbone.simfp_")
        assert parameter.requires_grad != of_vit, name
    pyramid = [p for name, p in model.named_parameters() if name.startswith("backbone.simfp_")]
    assert bool(pyramid) == (features != ["last_feat"])
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in pyramid)
    with torch.no_grad():
        assert len(model.eval()(samples)) == 2


def test_freeze_at_zero_trains_all_and_the_pyramid_learns_at_the_rate_of_the_heads():
    cfg = tiny_cfg(
        "DETR", *VIT, "MODEL.BACKBONE.FREEZE_AT", 0, "SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.BASE_LR", 1.0
    )
    model = tiny_model("DETR", *VIT, "MODEL.BACKBONE.FREEZE_AT", 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    rates = {
        id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        slow = name.startswith("backbone.") and "simfp" not in name
        assert rates[id(parameter)] == pytest.approx(0.1 if slow else 1.0), name
    assert (
        layer_of("backbone.simfp_3.0.weight") == ""
        and layer_of("backbone.blocks.3.attn") == "backbone.blocks.3"
    )


def test_a_copy_runs_with_its_own_weights_and_on_its_own_type():
    backbone = VisionTransformerBackbone(name="vit_tiny_patch16_224", out_features=["last_feat", "res4"])
    clone = copy.deepcopy(backbone)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected = backbone(images)["res4"]
        for parameter in backbone.parameters():
            parameter.zero_()
        torch.testing.assert_close(clone(images)["res4"], expected)
        assert not torch.equal(backbone(images)["res4"], expected)
        assert clone.double()(images.double())["res4"].dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "features", "words"),
    [
        ("vit_small_patch14_dinov", ["res4"], ["MODEL.TIMM.NAME", "vit_small_patch14_dinov2"]),
        ("resnet18", ["res4"], ["MODEL.TIMM.NAME", "build_timm_backbone"]),
        (DINOV3, ["res6"], ["MODEL.TIMM.OUT_FEATURES", "res6", "'last_feat'"]),
        (DINOV3, [], ["MODEL.TIMM.OUT_FEATURES"]),
        (DINOV3, ["res3", "res5"], ["MODEL.TIMM.OUT_FEATURES", "between"]),
    ],
)
def test_names_that_do_not_exist_are_reported_with_those_that_do(name, features, words):
    with pytest.raises(ValueError) as error, arguments_as_keys():
        VisionTransformerBackbone(name=name, out_features=features)
    assert all(word in str(error.value) for word in words)


def test_export_is_refused_since_it_could_not_keep_padding_out():
    with pytest.raises(ValueError, match=r"one by one, which ONNX cannot hold"):
        export_onnx(tiny_model("DETR", *VIT), "never_written.onnx")


def test_sides_that_are_no_multiples_of_the_patch_are_refused():
    backbone = VisionTransformerBackbone(name=DINOV3, out_features=["res5"])
    with pytest.raises(ValueError, match=r"multiples of 32 px, not 48 x 64; .* INPUT.QUERY_PATCH.SIZE"):
        backbone(torch.zeros(1, 3, 64, 48))
