"""An optimized model is the same model: features, gradients, and what hooks and hand-called blocks see."""

import copy

import pytest
import torch
from helpers import RESNET18, randomize_frozen_norms, tiny_cfg

from updetr_d2.modeling.backbone import build_backbone
from updetr_d2.modeling.fast.folding import FoldedConv2d
from updetr_d2.modeling.fast.optimize import optimize_frozen

FEATURES = ["res2", "res3", "res4", "res5"]
BACKBONES = {
    "resnet18": (*RESNET18[:-1], FEATURES),
    "resnet50": (*RESNET18[:2], "MODEL.RESNETS.OUT_FEATURES", FEATURES),
    "timm": (
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0"),
        *("MODEL.TIMM.OUT_FEATURES", FEATURES, "MODEL.BACKBONE.FREEZE_AT", 2),
    ),
}
# A block in the middle whose output the next block takes as its input.
BLOCK = {"resnet18": "res3.0", "resnet50": "res3.1", "timm": "blocks.2.0"}


class Detector(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


@pytest.fixture(params=list(BACKBONES))
def kind(request):
    return request.param


@pytest.fixture
def pair(kind):
    """A backbone and the same one optimized."""
    torch.manual_seed(0)
    plain = randomize_frozen_norms(build_backbone(tiny_cfg("DETR", *BACKBONES[kind]))).eval()
    return plain, optimize_frozen(Detector(copy.deepcopy(plain))).backbone


def close(found, expected):
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)


@torch.no_grad()
def test_features_and_names_are_the_same(pair):
    plain, optimized = pair
    assert list(optimized.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    before = images.clone()
    expected, found = plain(images), optimized(images)
    for name in FEATURES:
        close(found[name], expected[name])
    assert torch.equal(images, before)


@torch.no_grad()
def test_hooks_see_what_the_blocks_of_the_plain_backbone_give(kind, pair):
    """And it stays what it was when later blocks have run."""
    seen = []
    for backbone in pair:
        backbone.get_submodule(BLOCK[kind]).register_forward_hook(lambda m, i, output: seen.append(output))
    images = torch.randn(1, 3, 64, 64)
    for backbone in pair:
        backbone(images)
    expected, found = seen
    close(found, expected)


@torch.no_grad()
def test_a_block_called_by_hand_leaves_its_input_alone(kind, pair):
    plain, optimized = (backbone.get_submodule(BLOCK[kind]) for backbone in pair)
    channels = next(plain.parameters()).shape[1]
    x = torch.randn(1, channels, 8, 8)
    before = x.clone()
    close(optimized(x), plain(x))
    assert torch.equal(x, before)


def test_gradients_are_the_same(pair):
    plain, optimized = pair
    images = torch.randn(1, 3, 64, 64)
    for backbone in pair:
        feature = backbone(images)["res5"]
        (feature / feature.detach().abs().max()).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), optimized.named_parameters()):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            scale = a.grad.abs().max()
            torch.testing.assert_close(b.grad / scale, a.grad / scale, rtol=0, atol=1e-4, msg=name)


def test_something_is_folded(kind, pair):
    _, optimized = pair
    if kind == "timm":
        with torch.no_grad():
            optimized(torch.randn(1, 3, 32, 32))
        assert optimized._folded._folded is not optimized._net[0]
    else:
        assert any(isinstance(module, FoldedConv2d) for module in optimized.modules())


def test_a_model_without_a_backbone_stays_as_it_is():
    model = torch.nn.Linear(2, 2)
    assert optimize_frozen(model) is model
