"""Folding frozen BatchNorms into convolutions changes no feature, no gradient, no name, nothing that is saved."""

import copy
import io

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from helpers import randomize_frozen_norms
from torch import nn
from torch.nn import functional as F

from updetr_d2.modeling.fast.folding import FoldedConv2d, fold_frozen_batchnorm


def network(bias: bool = False) -> nn.Module:
    """Two convolutions with norms, of which the second has stride, groups and an activation, and one without."""
    return randomize_frozen_norms(
        nn.Sequential(
            Conv2d(3, 8, 3, padding=1, bias=bias, norm=FrozenBatchNorm2d(8)),
            Conv2d(8, 4, 3, stride=2, dilation=2, groups=2, norm=FrozenBatchNorm2d(4), activation=F.relu),
            Conv2d(4, 4, 1),
        )
    )


@pytest.fixture
def images():
    return torch.randn(2, 3, 9, 13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_features_are_those_of_convolution_and_norm(bias, frozen, images):
    plain = network(bias).requires_grad_(not frozen)
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    assert [type(each) for each in folded] == [FoldedConv2d, FoldedConv2d, Conv2d]
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_convolution_and_norm(images):
    plain = network(bias=True)
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    for net in (plain, folded):
        net(images).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), folded.parameters()):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_names_and_values_of_the_state_are_the_same_before_and_after_use(images):
    plain = network()
    folded = fold_frozen_batchnorm(copy.deepcopy(plain)).requires_grad_(False)
    folded(images)
    assert list(folded.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(folded.state_dict()[name], value)


CHANGES = {
    "load_state_dict": lambda net, other: net.load_state_dict(other.state_dict()),
    "assigned": lambda net, other: net.load_state_dict(other.state_dict(), assign=True),
    "one weight": lambda net, other: net[0].weight.mul_(2),
    "one statistic": lambda net, other: net[1].norm.running_var.mul_(2),
    "moved": lambda net, other: net.double().float().load_state_dict(other.state_dict()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_after_the_first_use_counts(change, images):
    plain = network().requires_grad_(False)
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    before = folded(images)
    other = network()
    change(plain, other)
    change(folded, other)
    assert not torch.allclose(folded(images), before)
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-5, atol=1e-5)


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    # The kind that trains models here; PyTorch does not count its changes of a tensor.
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_step_between_evaluations_counts(make_optimizer, images):
    plain = network()
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    for net in (plain, folded):
        with torch.no_grad():
            before = net(images)
        net(images).square().mean().backward()
        make_optimizer(net.parameters()).step()
    with torch.no_grad():
        after = folded(images)
        assert not torch.allclose(after, before, rtol=0.01, atol=0.01)
        torch.testing.assert_close(after, plain(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [True, False], ids=["train()", "eval()"])
def test_changes_that_are_not_counted_are_seen_after_a_call_of(mode, images):
    plain = network().requires_grad_(False)
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    folded(images)
    for net in (plain, folded):
        for parameter in net.parameters():
            parameter.data.mul_(2)
    torch.testing.assert_close(folded.train(mode)(images), plain(images), rtol=1e-5, atol=1e-5)


def test_frozen_weights_are_folded_once(images, monkeypatch):
    folded = fold_frozen_batchnorm(network()).requires_grad_(False)
    folded(images)
    monkeypatch.setattr(FoldedConv2d, "fold", lambda self: pytest.fail("folded again"))
    folded(images)


def test_copies_and_pickles_are_independent_and_hold_no_cache(images):
    folded = fold_frozen_batchnorm(network()).requires_grad_(False)
    expected = folded(images)
    clone = copy.deepcopy(folded)
    assert clone[0]._cache is None
    clone[0].weight.mul_(2)
    torch.testing.assert_close(folded(images), expected)
    fresh, used = io.BytesIO(), io.BytesIO()
    torch.save(copy.deepcopy(folded), fresh)
    torch.save(folded, used)
    assert len(used.getvalue()) == len(fresh.getvalue())


def test_inference_mode_leaves_nothing_that_training_cannot_use(images):
    plain = network().requires_grad_(False)
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    with torch.inference_mode():
        folded(images)
    images.requires_grad_()
    folded(images).sum().backward()
    gradient, images.grad = images.grad, None
    plain(images).sum().backward()
    torch.testing.assert_close(gradient, images.grad, rtol=1e-4, atol=1e-4)


def test_a_model_made_in_inference_mode_works(images):
    with torch.inference_mode():
        folded = fold_frozen_batchnorm(network())
        before = folded(images)
        folded[0].weight.mul_(2)
        assert not torch.allclose(folded(images), before)


def test_autocast_gets_weights_in_its_type(images):
    plain = network().requires_grad_(False)
    folded = fold_frozen_batchnorm(copy.deepcopy(plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = folded(images)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain(images), rtol=0.1, atol=0.1)
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-5, atol=1e-5)  # and back again


def test_channels_last_from_the_first_frozen_convolution_on(images):
    folded = fold_frozen_batchnorm(network()).requires_grad_(False)
    assert folded[0](images).is_contiguous(memory_format=torch.channels_last)
