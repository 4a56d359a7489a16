"""Residual blocks with fused convolutions give the same features, and stay plain where the fused ones fail.

The kernels are cuDNN's; here they are replaced by what their documentation says.
"""

import copy

import pytest
import torch
from helpers import RESNET18, randomize_frozen_norms, tiny_cfg
from torch import nn
from torch.nn import functional as F

from updetr_d2.modeling.backbone import build_backbone
from updetr_d2.modeling.fast import cudnn_fusion
from updetr_d2.modeling.fast.cudnn_fusion import FusedBasicBlock, FusedBottleneckBlock, fuse_blocks
from updetr_d2.modeling.fast.folding import fold_frozen_batchnorm

FEATURES = ["res2", "res3", "res4", "res5"]
KINDS = {
    "resnet18": ((*RESNET18[:-1], FEATURES), FusedBasicBlock),
    "resnet50": ((*RESNET18[:2], "MODEL.RESNETS.OUT_FEATURES", FEATURES), FusedBottleneckBlock),
}
CALLS = []


def convolution_relu(x, weight, bias, stride, padding, dilation, groups):
    CALLS.append("relu")
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).clamp(min=0)


def convolution_add_relu(x, weight, z, alpha, bias, stride, padding, dilation, groups):
    CALLS.append("add relu")
    return (F.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).clamp(min=0)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    CALLS.clear()
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolution_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", convolution_add_relu)
    monkeypatch.setattr(cudnn_fusion, "_on_gpu", lambda x: True)


@pytest.fixture(params=list(KINDS))
def pair(request):
    """A frozen backbone and the same one fused."""
    options, kind = KINDS[request.param]
    torch.manual_seed(0)
    plain = randomize_frozen_norms(build_backbone(tiny_cfg("DETR", *options))).eval()
    plain = fold_frozen_batchnorm(plain).requires_grad_(False)
    fused = copy.deepcopy(plain)
    fuse_blocks(fused)
    assert any(type(module) is kind for module in fused.modules())
    assert list(fused.state_dict()) == list(plain.state_dict())
    return plain, fused


def assert_same(found, expected):
    for name in FEATURES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4 * expected[name].std())


def test_features_are_the_same_and_inputs_stay(pair):
    plain, fused = pair
    images = torch.randn(2, 3, 64, 96)
    before = images.clone()
    assert_same(fused(images), plain(images))
    num_blocks = sum(isinstance(m, (FusedBasicBlock, FusedBottleneckBlock)) for m in fused.modules())
    per_block = 1 if any(isinstance(m, FusedBasicBlock) for m in fused.modules()) else 2
    assert CALLS.count("add relu") == 2 * num_blocks  # once to check
    assert CALLS.count("relu") == 2 * per_block * num_blocks
    CALLS.clear()
    seen = []
    block = fused.get_submodule("res3.1")
    block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], inputs[0].clone())))
    assert_same(fused(images), plain(images))
    assert CALLS.count("add relu") == num_blocks
    assert torch.equal(*seen[0])
    assert torch.equal(images, before)


@pytest.mark.parametrize("fault", ["refuses", "wrong", "not a number"])
def test_blocks_stay_plain_where_the_kernel_fails(pair, monkeypatch, caplog, fault):
    def faulty(*args):
        if fault == "refuses":
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
        return convolution_add_relu(*args) * (float("nan") if fault == "not a number" else 1.1)

    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", faulty)
    plain, fused = pair
    images = torch.randn(1, 3, 64, 64)
    assert_same(fused(images), plain(images))
    assert "are not used for torch.float32" in caplog.text
    CALLS.clear()
    fused(images)
    assert not CALLS


def test_whoever_trains_or_looks_at_a_convolution_gets_the_plain_block(pair):
    plain, fused = pair
    images = torch.randn(1, 3, 64, 64)
    for backbone in pair:
        backbone.requires_grad_(True)
        backbone(images)["res5"].square().mean().backward()
    assert not CALLS
    for (name, a), (_, b) in zip(plain.named_parameters(), fused.named_parameters()):
        assert torch.equal(a.grad, b.grad), name
    seen = []
    fused.requires_grad_(False).get_submodule("res3.1.conv1").register_forward_hook(lambda *_: seen.append(1))
    fused(images)
    assert seen == [1]
    fused(images.requires_grad_())["res5"].sum().backward()
    assert images.grad is not None


def test_types_are_checked_one_by_one(pair):
    _, fused = pair
    block = fused.get_submodule("res2.1")
    channels = next(block.parameters()).shape[1]
    x = torch.randn(1, channels, 8, 8)
    for dtype in (torch.float32, torch.bfloat16):
        expected = block.plain(x.to(dtype))
        torch.testing.assert_close(block(x.to(dtype)), expected, rtol=0.02, atol=0.05 * float(expected.std()))
    assert block._fits == {torch.float32: True, torch.bfloat16: True}


def test_other_modules_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    fuse_blocks(model)
    assert [type(module) for module in model] == [nn.Conv2d, nn.ReLU]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype, pair, monkeypatch):
    monkeypatch.undo()
    plain, fused = (backbone.cuda() for backbone in pair)
    images = torch.randn(2, 3, 128, 160, device="cuda")
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        expected, found = plain(images), fused(images)
    for name in FEATURES:
        error = (found[name].float() - expected[name].float()).abs().max() / expected[name].float().std()
        assert error < (0.3 if dtype != torch.float32 else 0.05)
