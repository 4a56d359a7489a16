"""Attention equals ``nn.MultiheadAttention`` and takes its parameters."""

import pytest
import torch
from torch import nn

from updetr_d2.modeling import attention
from updetr_d2.modeling.attention import MultiheadAttention

C, A, B, Q, S = 16, 4, 2, 5, 7


def build(dropout: float = 0.0):
    """Ours and PyTorch's with the same weights."""
    plain = nn.MultiheadAttention(C, A, dropout=dropout, batch_first=True)
    nn.init.normal_(plain.in_proj_bias)
    nn.init.normal_(plain.out_proj.bias)
    ours = MultiheadAttention(C, A, dropout=dropout)
    ours.load_state_dict(plain.state_dict())
    return ours, plain


def test_self_attention_with_values_of_their_own():
    ours, plain = build()
    query, value = torch.randn(B, Q, C), torch.randn(B, Q, C)
    torch.testing.assert_close(ours(query, query, value), plain(query, query, value)[0])


def test_cross_attention_with_padding():
    ours, plain = build()
    query, key, value = torch.randn(B, Q, C), torch.randn(B, S, C), torch.randn(B, S, C)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 4:] = True
    torch.testing.assert_close(
        ours(query, key, value, allowed=~padding[:, None, None]),
        plain(query, key, value, key_padding_mask=padding)[0],
    )


def test_mask_between_queries():
    ours, plain = build()
    x = torch.randn(B, Q, C)
    forbidden = torch.ones(Q, Q, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x, x, x, allowed=~forbidden), plain(x, x, x, attn_mask=forbidden)[0])


def test_both_ways_to_attend_are_the_same(monkeypatch):
    """The one of training with dropout on a CPU, here with a dropout that drops nothing, and the fused one."""
    ours, _ = build(dropout=0.5)
    monkeypatch.setattr(attention, "dropout", lambda x, p: x)
    query, key = torch.randn(B, Q, C), torch.randn(B, S, C)
    allowed = torch.rand(B, 1, Q, S) > 0.3
    allowed[..., 0] = True
    trained = ours(query, key, key, allowed=allowed)
    torch.testing.assert_close(trained, ours.eval()(query, key, key, allowed=allowed))


def test_weights_are_dropped_in_training_without_bias():
    ours, _ = build(dropout=0.5)
    x = torch.randn(B, Q, C)
    with torch.no_grad():
        mean = torch.stack([ours(x, x, x) for _ in range(4000)]).mean(dim=0)
        single = ours(x, x, x)
        expected = ours.eval()(x, x, x)
    assert not torch.allclose(single, expected, atol=0.05)
    torch.testing.assert_close(mean, expected, atol=0.08, rtol=0)


@pytest.mark.parametrize("same", [True, False])
def test_gradients_of_all_parameters(same):
    ours, plain = build()
    query, value = torch.randn(B, Q, C), torch.randn(B, Q, C)
    key = query if same else torch.randn(B, Q, C)
    ours(query, key, value).square().sum().backward()
    plain(query, key, value)[0].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), ours.parameters()):
        torch.testing.assert_close(b.grad, a.grad, msg=name, rtol=1e-4, atol=1e-5)
