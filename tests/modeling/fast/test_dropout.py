"""Dropout with few random bits is dropout: its rate, its scale, its gradient, its generator."""

import pytest
import torch

from updetr_d2.modeling.fast.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_scale(p):
    kept = dropout(torch.ones(1000, 1000), p)
    values = kept.unique()
    assert len(values) == 2 and values[0] == 0
    assert float(values[1]) == pytest.approx(1 / (1 - p), rel=1e-4)
    # Six standard deviations of a million coins.
    assert float((kept == 0).float().mean()) == pytest.approx(p, abs=6 * (p * (1 - p) / 1e6) ** 0.5)
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)


def test_neighbours_are_independent():
    """Elements that share a 64-bit number, and others, are zero together p² of the time."""
    zero = (dropout(torch.ones(400_000), 0.3) == 0).view(-1, 8)
    together = torch.einsum("ni,nj->ij", zero.double(), zero.double()) / len(zero)
    off_diagonal = together[~torch.eye(8, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, 0.09), atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_shape_and_type(shape, dtype):
    result = dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert result.shape == shape and result.dtype == dtype
    assert ((result == 0) | (result == 2)).all()


def test_gradient_is_that_of_the_kept_elements():
    x = torch.randn(50, 50, requires_grad=True)
    result = dropout(x, 0.25)
    result.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(result == 0, 0.0, 4 / 3))


def test_the_global_generator_decides():
    x = torch.ones(100)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_layouts_other_than_contiguous():
    x = torch.arange(1.0, 13.0).view(3, 4).t()
    result = dropout(x, 0.5)
    assert ((result == 0) | (result == 2 * x)).all()


def test_module_acts_in_training_only():
    module, x = Dropout(0.5), torch.ones(100)
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
