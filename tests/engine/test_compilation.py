"""MODEL.COMPILE: the same losses and gradients from the same weights, with or without a compiler."""

import copy
import logging

import pytest
import torch
from helpers import DEFORMABLE, RESNET18, random_sample, tiny_model

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
    assert len(calls) == 1
    warnings = [record.message for record in caplog.records]
    assert warnings == ["MODEL.COMPILE: the transformer runs without torch.compile (no C++ compiler)."]


def test_an_error_of_the_model_itself_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = build()
    compile_parts(model)
    position, queries = torch.zeros(1, 32, 2, 2), torch.zeros(1, 5, 32)
    with pytest.raises(RuntimeError):
        model.transformer(torch.zeros(1, 7, 2, 2), position=position, query_position=queries)
    _, memory = model.transformer(torch.zeros(1, 32, 2, 2), position=position, query_position=queries)
    assert memory.shape == (1, 32, 2, 2)


def test_evaluation_runs_as_it_is(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", lambda function, **_: refuse)
    model = build()
    compile_parts(model)
    assert model.eval()([random_sample(num_patches=5)])


def test_a_transformer_without_forward_is_left_as_it_is(caplog):
    model = tiny_model("DETR", *DEFORMABLE)
    compile_parts(model)
    assert "DeformableTransformer has nothing to compile" in caplog.text
    assert "forward" not in vars(model.transformer)


@pytest.mark.slow
def test_images_of_any_size_need_few_compilations(caplog):
    """PyTorch gives a function up after eight; evaluations in between must not use them up."""
    compilations = []

    def count(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = tiny_model("DETR", "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1)
    compile_parts(model, backend=count)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 12, (40, 2), generator=generator) * 32
    for number, (height, width) in enumerate(sizes.tolist()):
        if number == 20:
            model.eval()
            with torch.no_grad():
                model([random_sample(height, width)])
            model.train()
        with torch.no_grad() if number % 2 else torch.enable_grad():
            model([random_sample(height, width), random_sample(width, height)])
    torch._dynamo.reset()
    assert 1 <= len(compilations) <= 6
    assert "recompile_limit" not in caplog.text
