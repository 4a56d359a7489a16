"""Deformable attention: by hand, against loops, ``grid_sample``'s gradients and transformers' own code."""

import pytest
import torch
from torch.nn import functional as F

from updetr_d2.modeling.transformers.deformable_attention import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attention,
)

SHAPES = [(3, 4), (2, 2), (1, 1)]
NUM_TOKENS = 17


def random_inputs(*, batch_size=2, num_queries=5, num_heads=2, head_dim=3, num_points=2, dtype=torch.float64):
    """Values, positions inside and outside of the levels, and weights."""
    generator = torch.Generator().manual_seed(3)
    points = (batch_size, num_queries, num_heads, len(SHAPES), num_points)
    value = torch.randn(batch_size, NUM_TOKENS, num_heads, head_dim, generator=generator, dtype=dtype)
    locations = 2 * torch.rand(*points, 2, generator=generator, dtype=dtype) - 0.5
    return value, locations, torch.rand(points, generator=generator, dtype=dtype)


def one_point(x, y, *, values=((1.0, 2.0), (4.0, 8.0))):
    """What a single point with weight 1 reads of a level, one head with one channel."""
    level = torch.tensor(values, dtype=torch.float64)
    return multi_scale_deformable_attention(
        level.reshape(1, -1, 1, 1),
        [tuple(level.shape)],
        torch.tensor([x, y], dtype=torch.float64).reshape(1, 1, 1, 1, 1, 2),
        torch.ones(1, 1, 1, 1, 1, dtype=torch.float64),
    ).item()


def loop_reference(value, shapes, locations, weights):
    """The definition, number by number."""
    batch_size, num_queries, num_heads, num_levels, num_points, _ = locations.shape
    output = torch.zeros(batch_size, num_queries, num_heads, value.shape[-1], dtype=value.dtype)
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(num_levels)]
    for b, q, a, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch_size, num_queries, num_heads, num_levels, num_points))
    ).tolist():
        height, width = shapes[level]
        x = locations[b, q, a, level, p, 0].item() * width - 0.5
        y = locations[b, q, a, level, p, 1].item() * height - 0.5
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                token = value[b, starts[level] + row * width + column, a]
                output[b, q, a] += weights[b, q, a, level, p] * share * token
    return output.flatten(2)


def grid_sample_reference(value, shapes, locations, weights):
    batch_size, _, num_heads, _ = value.shape
    output = 0
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, (tokens, shape) in enumerate(zip(levels, shapes)):
        images = tokens.permute(0, 2, 3, 1).unflatten(-1, shape).flatten(0, 1)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(images, grid, align_corners=False).unflatten(0, (batch_size, num_heads))
        output = output + torch.einsum("badqp,bqap->bqad", sampled, weights[:, :, :, level])
    return output.flatten(2)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, 1.0),  # centers of pixels
        (0.75, 0.25, 2.0),
        (0.25, 0.75, 4.0),
        (0.5, 0.5, 3.75),  # halfway between all four
        (0.5, 0.25, 1.5),
        (0.0, 0.0, 0.25),  # a corner of the level: a quarter of the pixel, zeros around it
        (1.0, 1.0, 2.0),
        (-0.25, 0.25, 0.0),  # a pixel away from the nearest center
        (1.25, 0.75, 0.0),
        (30.0, -1e20, 0.0),
        (float("inf"), 0.5, float("nan")),  # a diverged model gets NaN rather than a row out of the table
        (float("nan"), 0.5, float("nan")),
    ],
)
def test_one_point_by_hand(x, y, expected):
    assert one_point(x, y) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_two_levels_by_hand():
    # Level 0 is 1 × 2 (1, 3), level 1 is 1 × 1 (10): 0.5 · (1 + 3) / 2 + 0.25 · 10, and 2 · 10 outside of level 0.
    value = torch.tensor([1.0, 3.0, 10.0]).reshape(1, 3, 1, 1)
    locations = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[7.0, 7.0], [0.5, 0.5]]]).reshape(1, 2, 1, 2, 1, 2)
    weights = torch.tensor([[0.5, 0.25], [9.0, 2.0]]).reshape(1, 2, 1, 2, 1)
    attended = multi_scale_deformable_attention(value, [(1, 2), (1, 1)], locations, weights)
    torch.testing.assert_close(attended, torch.tensor([[[3.5], [20.0]]]))


@pytest.mark.parametrize("use_grid_sample", [False, True])
def test_equals_the_definition(use_grid_sample):
    inputs = random_inputs()
    value, locations, weights = inputs
    torch.testing.assert_close(
        multi_scale_deformable_attention(value, SHAPES, locations, weights, use_grid_sample=use_grid_sample),
        loop_reference(value, SHAPES, locations, weights),
    )


def test_gradients_equal_finite_differences():
    inputs = [x.requires_grad_() for x in random_inputs(num_queries=3, head_dim=2)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: multi_scale_deformable_attention(value, SHAPES, locations, weights),
        inputs,
    )


def test_gradients_equal_those_of_grid_sample():
    inputs = [x.requires_grad_() for x in random_inputs(num_queries=40)]
    value, locations, weights = inputs
    grad = torch.randn(2, 40, 6, dtype=torch.float64)
    results = []
    for function in (multi_scale_deformable_attention, grid_sample_reference):
        attended = function(value, SHAPES, locations, weights)
        results.append((attended, *torch.autograd.grad(attended, inputs, grad)))
    torch.testing.assert_close(*results)
    # Of an expanded gradient, whose memory is a single number, too.
    total = multi_scale_deformable_attention(value, SHAPES, locations, weights).sum()
    expected = grid_sample_reference(value, SHAPES, locations, weights).sum()
    torch.testing.assert_close(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs))


def test_nothing_but_the_arguments_is_kept_for_the_backward_pass():
    inputs = [x.requires_grad_() for x in random_inputs(num_queries=50, dtype=torch.float32)]
    value, locations, weights = inputs
    kept = set()

    def pack(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert kept == {x.untyped_storage().data_ptr() for x in inputs}


def test_bfloat16_values_keep_exact_positions():
    value, locations, weights = random_inputs(dtype=torch.float32)
    rounded = value.bfloat16()
    attended = multi_scale_deformable_attention(rounded, SHAPES, locations, weights)
    assert attended.dtype == torch.bfloat16
    expected = multi_scale_deformable_attention(rounded.float(), SHAPES, locations, weights)
    torch.testing.assert_close(attended, expected.bfloat16(), rtol=0, atol=0)


def test_levels_must_fit():
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match="do not fit 17 tokens and positions in 3 levels"):
        multi_scale_deformable_attention(value, [(3, 4), (2, 2), (1, 2)], locations, weights)
    with pytest.raises(ValueError, match="do not fit"):
        multi_scale_deformable_attention(value, [(3, 4), (5, 1)], locations, weights)


def random_module(*, num_heads=2, hidden_dim=8):
    """An attention whose positions and weights depend on the query."""
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(
        hidden_dim=hidden_dim, num_heads=num_heads, num_levels=3, num_points=2
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def module_inputs(coordinates=2):
    torch.manual_seed(1)
    return torch.randn(2, 5, 8), torch.rand(2, 5, 3, coordinates), torch.randn(2, NUM_TOKENS, 8), SHAPES


@pytest.mark.parametrize("coordinates", [2, 4])
def test_equals_transformers(coordinates):
    transformers = pytest.importorskip("transformers")
    from transformers.models.deformable_detr import modeling_deformable_detr

    config = transformers.DeformableDetrConfig(d_model=8, num_feature_levels=3, disable_custom_kernels=True)
    theirs = modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention(config, 2, 2)
    ours = random_module()
    theirs.load_state_dict(ours.state_dict())
    query, reference, tokens, shapes = module_inputs(coordinates)
    padding_mask = torch.zeros(2, NUM_TOKENS, dtype=torch.bool)
    padding_mask[1, [3, 7, 11, 13, 15]] = True
    sizes = torch.tensor(shapes)
    expected, _ = theirs(
        hidden_states=query,
        attention_mask=~padding_mask,
        encoder_hidden_states=tokens,
        reference_points=reference,
        spatial_shapes=sizes,
        spatial_shapes_list=shapes,
        level_start_index=torch.tensor([0, 12, 16]),
    )
    torch.testing.assert_close(ours(query, reference, tokens, shapes, padding_mask), expected)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_a_new_module_looks_in_a_direction_a_head(coordinates):
    module = MultiScaleDeformableAttention(hidden_dim=16, num_heads=8, num_levels=2, num_points=3)
    bias = module.sampling_offsets.bias.detach().reshape(8, 2, 3, 2)
    directions = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    expected = directions[:, None, None] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    torch.testing.assert_close(bias, expected.expand(8, 2, 3, 2), rtol=0, atol=1e-5)
    # Every position counts the same, whatever the query. The points of head 0 lie to the right of the reference:
    # by 1, 2 and 3 pixels of a point, by 1/3, 2/3 and 3/3 of half its width of a box.
    query = torch.randn(1, 1, 16)
    assert torch.equal(module.attention_weights(query), torch.zeros(1, 1, 48))
    reference = torch.tensor([0.5, 0.5, 0.2, 0.4][:coordinates]).expand(1, 1, 2, coordinates)
    x = module._locations(query, reference, [(4, 8), (2, 4)])[0, 0, 0, :, :, 0]
    steps = torch.tensor([[1 / 8], [1 / 4]]) if coordinates == 2 else torch.full((2, 1), 0.1 / 3)
    torch.testing.assert_close(x, 0.5 + steps * torch.tensor([1.0, 2.0, 3.0]))


def test_padding_tokens_count_as_zero():
    module = random_module()
    query, reference, tokens, shapes = module_inputs()
    padding_mask = torch.rand(2, NUM_TOKENS) < 0.4
    other_padding = torch.where(padding_mask[..., None], 1e4 * torch.randn_like(tokens), tokens)
    with torch.no_grad():
        expected = module(query, reference, tokens, shapes, padding_mask)
        assert torch.equal(module(query, reference, other_padding, shapes, padding_mask), expected)
        # Zero after the projection, whose bias would be left otherwise.
        everything = module(query, reference, tokens, shapes, torch.ones_like(padding_mask))
        torch.testing.assert_close(everything, module.output_proj.bias.expand(2, 5, 8))


def test_autocast_is_close_to_float32_and_trains():
    module = random_module()
    inputs = module_inputs()
    expected = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        attended = module(*inputs)
        locations = module._locations(inputs[0], inputs[1], SHAPES)
    assert (attended.dtype, locations.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(attended.float(), expected, rtol=0.05, atol=0.1)
    attended.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in module.parameters())


def test_can_be_exported():
    module = random_module().eval()
    query, reference, tokens, _ = module_inputs()

    class FixedShapes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module

        def forward(self, query, reference, tokens):
            return self.attention(query, reference, tokens, SHAPES)

    with torch.no_grad():
        program = torch.export.export(FixedShapes(), (query, reference, tokens))
        torch.testing.assert_close(
            program.module()(query, reference, tokens), module(query, reference, tokens, SHAPES)
        )


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="hidden_dim 9 must be a multiple of num_heads 2"):
        MultiScaleDeformableAttention(hidden_dim=9, num_heads=2, num_levels=1, num_points=1)
    query, reference, tokens, shapes = module_inputs(coordinates=3)
    with pytest.raises(ValueError, match="2 or 4 coordinates, not 3"):
        random_module()(query, reference, tokens, shapes)
