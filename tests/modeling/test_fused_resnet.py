"""Fused blocks give the features of Detectron2's ResNet, whatever depth, stage or mode, under the same names."""

import copy

import pytest
import torch
from detectron2.modeling import build_backbone
from helpers import randomize_frozen_norms, tiny_cfg

from updetr_d2.modeling import fused_resnet
from updetr_d2.modeling.fast.folding import fold_frozen_batchnorm
from updetr_d2.modeling.fused_resnet import FusedResidualBlock, FusedStem, fuse_resnet_blocks

FEATURES = ["stem", "res2", "res3", "res4", "res5"]
WORKS = pytest.mark.skipif(
    not fused_resnet._fused_convolutions_work(), reason="this PyTorch has no such functions for this CPU"
)


def build(depth: int, norm: str = "FrozenBN"):
    """Detectron2's ResNet and the same fused."""
    options = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.OUT_FEATURES", FEATURES]
    options += ["MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.WIDTH_PER_GROUP", 16]
    options += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    if depth == 18:
        options[-1], options[7], options[9] = 64, 64, 64
    cfg = tiny_cfg("DETR", "MODEL.BACKBONE.NAME", "build_resnet_backbone", *options)
    plain = randomize_frozen_norms(build_backbone(cfg)).eval()
    return plain, fuse_resnet_blocks(fold_frozen_batchnorm(copy.deepcopy(plain)))


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


def assert_same_features(features, expected):
    for name in FEATURES:
        scale = expected[name].abs().max()
        torch.testing.assert_close(
            features[name] / scale,
            expected[name] / scale,
            rtol=0,
            atol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@WORKS
def test_what_a_hook_has_seen_stays_as_it_was(images):
    _, fused = build(50)
    seen = []
    for stage in (fused.res3, fused.res4):
        for block in stage:
            block.register_forward_hook(lambda block, args, output: seen.append((output, output.clone())))
    with torch.no_grad():
        fused(images)
    assert len(seen) == 10
    assert all(torch.equal(output, then) for output, then in seen)


@WORKS
@pytest.mark.parametrize("depth", [18, 50])
def test_features_of_all_stages_are_the_same(depth, images):
    plain, fused = build(depth)
    assert isinstance(fused.stem, FusedStem) and isinstance(fused.res3[1], FusedResidualBlock)
    assert list(fused.state_dict()) == list(plain.state_dict())
    before = images.clone()
    with torch.no_grad():
        # All at once: a block that wrote into a feature that is given out would be noticed.
        assert_same_features(fused(images), plain(images))
    assert torch.equal(images, before)


@WORKS
def test_fused_functions_run_where_no_gradient_is_wanted(images, monkeypatch):
    _, fused = build(18)
    calls = []
    for kind in (FusedStem, FusedResidualBlock):
        original = kind.fused_forward
        monkeypatch.setattr(
            kind, "fused_forward", lambda self, x, f=original: (calls.append(type(self)), f(self, x))[1]
        )
    with torch.no_grad():
        fused(images)
    assert len(calls) == 1 + 8
    calls.clear()
    fused.freeze(3)  # the stem, res2 and res3
    fused(images)
    assert len(calls) == 1 + 4
    calls.clear()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(images)["res5"].dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize("depth", [18, 50])
def test_gradients_are_the_same(depth, images):
    plain, fused = build(depth)
    for net in (plain, fused):
        net.freeze(2)
        features = net(images)
        (features["res5"] / features["res5"].detach().abs().max()).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), fused.named_parameters()):
        assert b[0] == name
        assert (a.grad is None) == (b[1].grad is None)
        if a.grad is not None:
            scale = a.grad.abs().max()
            torch.testing.assert_close(b[1].grad / scale, a.grad / scale, rtol=0, atol=1e-4, msg=name)


def test_without_the_functions_nothing_is_fused_and_all_is_the_same(images, monkeypatch):
    monkeypatch.setattr(fused_resnet, "_fused_convolutions_work", lambda: False)
    monkeypatch.setattr(FusedResidualBlock, "fused_forward", None)
    plain, fused = build(18)
    with torch.no_grad():
        assert_same_features(fused(images), plain(images))


def test_other_norms_are_left_alone():
    _, net = build(18, norm="GN")
    assert not any(isinstance(each, FusedResidualBlock) for each in net.modules())
