"""timm backbones: Detectron2's interface, plain timm's keys and numbers, frozen norms and stages, clear errors."""

import copy
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from helpers import RESNET18, tiny_model

from updetr_d2 import add_updetr_config
from updetr_d2.config.build import arguments_as_keys
from updetr_d2.modeling.backbone import TimmBackbone

timm = pytest.importorskip("timm")

LITE0 = "tf_efficientnet_lite0"


def randomized(model, seed=0):
    """The model with random norm statistics, so that a norm that is not applied is noticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def test_config_builds_features_with_detectron2_names_strides_and_channels():
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = LITE0
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    assert {n: (s.channels, s.stride) for n, s in shapes.items()} == {
        "res2": (24, 4),
        "res3": (40, 8),
        "res4": (112, 16),
        "res5": (320, 32),
    }
    assert backbone.size_divisibility == 32
    features = backbone(torch.zeros(2, 3, 64, 96))
    for name, shape in shapes.items():
        assert features[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_plain_timm_weights_load_by_key_and_give_the_same_features(name):
    plain = randomized(timm.create_model(name, pretrained=False)).eval()
    backbone = TimmBackbone(name=name, out_features=["res5"]).train()
    result = backbone.load_state_dict(plain.state_dict(), strict=False)
    assert not result.missing_keys
    heads = ("bn2.", "conv_head.", "classifier.", "fc.")
    assert all(key.startswith(heads) for key in result.unexpected_keys)

    reference = timm.create_model(name, pretrained=False, features_only=True).eval()
    reference.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    expected = reference.double()(images)[-1]
    # In training mode too: the norms are frozen and keep their activations.
    torch.testing.assert_close(backbone.double()(images)["res5"], expected)


def test_a_backbone_made_in_inference_mode_works():
    with torch.inference_mode():
        backbone, images = TimmBackbone(name="resnet18", out_features=["res5"]), torch.randn(1, 3, 64, 64)
        backbone.fold_frozen()
        before = backbone(images)["res5"]
        backbone.conv1.weight.mul_(2)
        assert not torch.allclose(backbone(images)["res5"], before)


def test_training_computes_in_channels_last_order_with_weights_in_the_plain_one():
    """Faster on CPUs; weights in another order than an older checkpoint's would confuse the fused optimizer."""
    backbone = TimmBackbone(name="resnet18", out_features=["res2"])
    images = torch.rand(2, 3, 64, 64)
    features = backbone(images)["res2"]
    assert features.requires_grad and features.is_contiguous(memory_format=torch.channels_last)
    features.sum().backward()
    for parameter in backbone.parameters():
        assert parameter.is_contiguous()
        assert parameter.grad is None or parameter.grad.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["res2"], features.detach())


def test_norms_are_neither_trained_nor_updated():
    backbone = TimmBackbone(name=LITE0, out_features=["res5"]).train()
    before = copy.deepcopy(backbone.state_dict())
    backbone(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert not any(".bn" in name for name, _ in backbone.named_parameters())
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_a_copy_runs_with_its_own_weights():
    backbone = TimmBackbone(name=LITE0, out_features=["res4"])
    backbone.fold_frozen()
    clone = copy.deepcopy(backbone)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = backbone(images)["res4"]
    for parameter in backbone.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(clone(images)["res4"], expected)
    assert not torch.equal(backbone(images)["res4"], expected)


@pytest.mark.parametrize("trains", [True, False], ids=["a step of the optimizer", ".data and eval()"])
def test_changes_that_pytorch_does_not_count_are_seen(trains):
    backbone, images = TimmBackbone(name="resnet18", out_features=["res5"]), torch.randn(1, 3, 64, 64)
    backbone.fold_frozen()
    with torch.no_grad():
        before = backbone(images)["res5"]
    if trains:
        backbone(images)["res5"].square().mean().backward()
        torch.optim.AdamW(backbone.parameters(), lr=0.01, fused=True).step()
    else:
        for parameter in backbone.parameters():
            parameter.data.mul_(1.1)
        backbone.eval()
    with torch.no_grad():
        after = backbone(images)["res5"]
        assert (after - before).abs().max() > 0.1
        fresh = TimmBackbone(name="resnet18", out_features=["res5"])
        fresh.load_state_dict(backbone.state_dict())
        torch.testing.assert_close(after, fresh(images)["res5"])


@pytest.mark.parametrize(
    ("freeze_at", "first_trained"), [(0, "conv_stem"), (1, "blocks.1"), (2, "blocks.2"), (4, "blocks.5")]
)
def test_freeze_at_freezes_the_first_stages(freeze_at, first_trained):
    backbone = TimmBackbone(name=LITE0, out_features=["res5"], freeze_at=freeze_at)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trained[0].startswith(first_trained)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert not any(name.startswith(first_trained) for name in frozen)


def test_freeze_at_five_freezes_everything_and_flattened_stages_are_found():
    backbone = TimmBackbone(name="convnext_atto", out_features=["res5"], freeze_at=2)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any(name.startswith(("stem", "stages_0")) for name in trained)
    frozen = TimmBackbone(name=LITE0, out_features=["res5"], freeze_at=5)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_stages_behind_the_deepest_feature_are_not_built():
    backbone = TimmBackbone(name=LITE0, out_features=["res3"])
    assert not any(key.startswith("blocks.3") for key in backbone.state_dict())
    assert backbone(torch.zeros(1, 3, 64, 64))["res3"].shape == (1, 40, 8, 8)


@pytest.mark.parametrize(
    ("name", "features", "words"),
    [
        ("tf_efficientnet_lite00", ["res5"], ["MODEL.TIMM.NAME", LITE0]),
        (LITE0, ["res6"], ["MODEL.TIMM.OUT_FEATURES", "res6", "'res5'"]),
        (LITE0, [], ["MODEL.TIMM.OUT_FEATURES", "'res5'"]),
    ],
)
def test_names_that_do_not_exist_are_reported_with_those_that_do(name, features, words):
    with pytest.raises(ValueError) as error, arguments_as_keys():
        TimmBackbone(name=name, out_features=features)
    assert all(word in str(error.value) for word in words)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install updetr_d2\[timm\]"):
        TimmBackbone(name=LITE0, out_features=["res5"])


def test_recomputed_stages_have_the_same_names_and_gradients_and_keep_less():
    def step(recompute):
        torch.manual_seed(0)
        model = tiny_model("DETR", *RESNET18, "MODEL.DETR.RECOMPUTE_BACKBONE", recompute)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            features = model.backbone(torch.rand(1, 3, 64, 64))["res5"]
        features.square().mean().backward()
        return list(model.state_dict()), {n: p.grad for n, p in model.named_parameters()}, sum(kept)

    names, gradients, kept = step(False)
    same_names, same_gradients, kept_recomputing = step(True)
    assert same_names == names
    torch.testing.assert_close(same_gradients, gradients)
    assert kept_recomputing < kept / 2


def test_recomputed_stages_are_for_resnets():
    with pytest.raises(ValueError, match=r"RECOMPUTE_BACKBONE is for Detectron2's ResNets, not for Patch"):
        tiny_model("DETR", "MODEL.DETR.RECOMPUTE_BACKBONE", True)
