"""MODEL.COMPILE: the same losses and gradients from the same weights, with or without a compiler."""

import copy
import logging

import pytest
import torch
from helpers import RESNET18, random_sample, tiny_model

from updetr_d2.engine.compilation import compile_parts


def losses_and_gradients(model, batch):
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return [random_sample(num_patches=5), random_sample(96, 64, num_patches=5)]


def build(*options):
    torch.manual_seed(0)
    model = tiny_model("UPDETR", *options)
    model.mask_ratio = -1.0  # nothing random
    return model


@pytest.mark.slow
def test_captured_graphs_give_the_same(batch):
    """The backend "eager" captures graphs as "inductor" does, and runs them with PyTorch's own kernels."""
    plain = build(*RESNET18, "MODEL.UPDETR.FREEZE_BACKBONE", False)
    compiled = copy.deepcopy(plain)
    compile_parts(compiled, backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        losses, gradients = losses_and_gradients(compiled, batch)
        expected, expected_gradients = losses_and_gradients(plain, batch)
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
        assert gradients.keys() == expected_gradients.keys()
    torch._dynamo.reset()


def test_a_compiler_that_fails_is_left_out_with_a_warning(batch, monkeypatch, caplog):
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("no C++ compiler\nlong explanation")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    plain = build()
    compiled = copy.deepcopy(plain)
    compile_parts(compiled)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            losses, gradients = losses_and_gradients(compiled, batch)
    expected, expected_gradients = losses_and_gradients(plain, batch)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    assert len(calls) == 2  # each part once
    warnings = [record.message for record in caplog.records]
    assert warnings == [
        f"MODEL.COMPILE: the {part} runs without torch.compile (no C++ compiler)."
        for part in ("backbone", "transformer")
    ]


def test_an_error_of_the_model_itself_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = build()
    compile_parts(model)
    with pytest.raises(RuntimeError):
        model.backbone(torch.zeros(1, 5, 64, 64))
    assert model.backbone(torch.zeros(1, 3, 64, 64))["res5"].shape[0] == 1
