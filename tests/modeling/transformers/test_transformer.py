"""The transformer against plain functional computations, sequence first with additive masks."""

import pytest
import torch
from torch.nn import functional as F

from updetr_d2.config.build import arguments_as_keys
from updetr_d2.modeling.transformers.transformer import Transformer

HEADS = 4


def build(**overrides):
    args = {
        "hidden_dim": 16,
        "num_heads": HEADS,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
        "dim_feedforward": 24,
        "dropout": 0.0,
        **overrides,
    }
    transformer = Transformer(**args)
    for parameter in transformer.parameters():
        if parameter.dim() == 1:  # biases of 0 and norms of 1 would hide mistakes
            torch.nn.init.normal_(parameter, mean=0.3, std=0.3)
    return transformer


def inputs(batch=2, height=3, width=4, queries=6, channels=16):
    return {
        "features": torch.randn(batch, channels, height, width),
        "position": torch.randn(batch, channels, height, width),
        "query_position": torch.randn(batch, queries, channels),
    }


def additive(mask):
    return torch.zeros(mask.shape).masked_fill(mask, float("-inf"))


def attend(w, name, query, key, value, attn_mask=None, key_padding_mask=None):
    return F.multi_head_attention_forward(
        query,
        key,
        value,
        query.shape[-1],
        HEADS,
        w[f"{name}.in_proj_weight"],
        w[f"{name}.in_proj_bias"],
        None,
        None,
        False,
        0.0,
        w[f"{name}.out_proj.weight"],
        w[f"{name}.out_proj.bias"],
        training=False,
        key_padding_mask=key_padding_mask,
        need_weights=True,
        attn_mask=attn_mask,
    )[0]


def reference(transformer, pre_norm, features, position, query_position, padding_mask, query_mask):
    """DETR's transformer written out; returns states [L, B, N, C] and memory [B, C, H, W]."""
    w = dict(transformer.named_parameters())

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def feed_forward(name, x):
        hidden = F.relu(F.linear(x, w[f"{name}.linear1.weight"], w[f"{name}.linear1.bias"]))
        return F.linear(hidden, w[f"{name}.linear2.weight"], w[f"{name}.linear2.bias"])

    def block(name, x, function):
        return x + function(norm(name, x)) if pre_norm else norm(name, x + function(x))

    sequence = features.flatten(2).permute(2, 0, 1)
    pos = position.flatten(2).permute(2, 0, 1)
    query_pos = query_position.transpose(0, 1)
    padding = additive(padding_mask.flatten(1))
    for i in range(len(transformer.encoder.layers)):
        name = f"encoder.layers.{i}"
        sequence = block(
            f"{name}.norm1",
            sequence,
            lambda y, name=name: attend(
                w, f"{name}.self_attn", y + pos, y + pos, y, key_padding_mask=padding
            ),
        )
        sequence = block(f"{name}.norm2", sequence, lambda y, name=name: feed_forward(name, y))
    memory = norm("encoder.norm", sequence) if pre_norm else sequence
    x = torch.zeros_like(query_pos)
    states = []
    for i in range(len(transformer.decoder.layers)):
        name = f"decoder.layers.{i}"
        x = block(
            f"{name}.norm1",
            x,
            lambda y, name=name: attend(
                w, f"{name}.self_attn", y + query_pos, y + query_pos, y, attn_mask=additive(query_mask)
            ),
        )
        x = block(
            f"{name}.norm2",
            x,
            lambda y, name=name: attend(
                w,
                f"{name}.multihead_attn",
                y + query_pos,
                memory + pos,
                memory,
                key_padding_mask=padding,
            ),
        )
        x = block(f"{name}.norm3", x, lambda y, name=name: feed_forward(name, y))
        states.append(norm("decoder.norm", x).transpose(0, 1))
    return torch.stack(states), memory.permute(1, 2, 0).reshape(features.shape)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_plain_computations(pre_norm):
    transformer = build(pre_norm=pre_norm)
    arguments = inputs()
    padding_mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding_mask[1, 2:] = True
    padding_mask[1, :, 3:] = True
    group = torch.arange(6) // 2
    query_mask = group[:, None] != group
    states, memory = transformer(**arguments, padding_mask=padding_mask, query_mask=query_mask)
    expected_states, expected_memory = reference(
        transformer, pre_norm, **arguments, padding_mask=padding_mask, query_mask=query_mask
    )
    assert states.shape == (3, 2, 6, 16)
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(memory, expected_memory, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_tokens_do_not_influence_the_others(pre_norm):
    transformer = build(pre_norm=pre_norm)
    arguments = inputs()
    padding_mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding_mask[:, :, 2:] = True
    states, memory = transformer(**arguments, padding_mask=padding_mask)
    arguments["features"][:, :, :, 2:] = 100.0
    arguments["position"][:, :, :, 2:] = -50.0
    other_states, other_memory = transformer(**arguments, padding_mask=padding_mask)
    torch.testing.assert_close(other_states, states)
    torch.testing.assert_close(other_memory[..., :2], memory[..., :2])
    assert not torch.allclose(other_memory[..., 2:], memory[..., 2:])


def test_no_mask_is_a_mask_without_padding():
    transformer = build()
    arguments = inputs()
    masked = transformer(
        **arguments,
        padding_mask=torch.zeros(2, 3, 4, dtype=torch.bool),
        query_mask=torch.zeros(6, 6, dtype=torch.bool),
    )
    torch.testing.assert_close(transformer(**arguments), masked)


def test_only_the_pre_norm_encoder_ends_in_a_norm():
    """Official DETR checkpoints are post-norm and have no ``encoder.norm``."""
    assert build(pre_norm=False).encoder.norm is None
    assert build(pre_norm=True).encoder.norm is not None


def test_matrices_are_xavier_uniform():
    transformer = Transformer(hidden_dim=64, num_heads=4, dim_feedforward=96)
    for name, parameter in transformer.named_parameters():
        if parameter.dim() == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.95 * bound < float(parameter.detach().abs().max()) <= bound, name


def test_dropout_acts_in_training_only():
    transformer = build(dropout=0.5)
    arguments = inputs()
    assert not torch.allclose(transformer(**arguments)[0], transformer(**arguments)[0])
    transformer.eval()
    torch.testing.assert_close(transformer(**arguments)[0], transformer(**arguments)[0])


def step(transformer, arguments):
    """Loss, gradients by name, number of values kept for the backward pass; the same random numbers every time."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    transformer.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = transformer(**arguments)[0].square().mean()
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in transformer.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_recomputed_encoder_has_the_same_gradients_and_keeps_less(pre_norm):
    """With dropout: the second computation must draw the random numbers of the first."""
    plain = build(dropout=0.3, pre_norm=pre_norm)
    recomputed = build(dropout=0.3, pre_norm=pre_norm, recompute_encoder=True, recompute_decoder=True)
    recomputed.load_state_dict(plain.state_dict())
    arguments = inputs(height=12, width=12)
    loss, gradients, kept = step(plain, arguments)
    other_loss, other_gradients, other_kept = step(recomputed, arguments)
    assert torch.equal(loss, other_loss)
    torch.testing.assert_close(other_gradients, gradients)
    assert other_kept < 0.5 * kept


def test_heads_must_divide_the_width():
    message = r"HIDDEN_DIM \(30\) must be a multiple of MODEL.DETR.NHEADS \(4\)"
    with pytest.raises(ValueError, match=message), arguments_as_keys():
        build(hidden_dim=30)
