"""Attention maps and mask head: written-out computations, chosen queries as all queries, useful errors."""

import pytest
import torch
from torch.nn import functional as F

from updetr_d2.config.build import arguments_as_keys
from updetr_d2.modeling.mask_head import AttentionMap, MaskHead, QueryMasks

B, N, C, A = 2, 5, 128, 8
FPN = {"channels": (12, 10, 6), "sizes": ((6, 8), (11, 16), (22, 31))}


@pytest.fixture(name="padding")
def _padding():
    padding = torch.zeros(B, 3, 4, dtype=torch.bool)
    padding[1, :, 3:] = True
    return padding


@pytest.fixture(name="inputs")
def _inputs():
    return {
        "context": torch.randn(B, C, 3, 4),
        "attention": torch.rand(B, N, A, 3, 4),
        "fpn_features": [torch.randn(B, c, *s) for c, s in zip(FPN["channels"], FPN["sizes"])],
    }


def mask_head():
    return MaskHead(hidden_dim=C, num_heads=A, fpn_channels=FPN["channels"])


class TestAttentionMap:
    @pytest.mark.parametrize("over_heads", [False, True])
    def test_equals_a_loop(self, padding, over_heads):
        module = AttentionMap(hidden_dim=C, num_heads=A, softmax_over_heads=over_heads)
        queries, memory = torch.randn(B, N, C), torch.randn(B, C, 3, 4)
        attention = module(queries, memory, padding)
        assert attention.shape == (B, N, A, 3, 4)
        width = C // A
        for b in range(B):
            keys = F.conv2d(memory[b], module.k_linear.weight[..., None, None], module.k_linear.bias)
            for n in range(N):
                query = module.q_linear(queries[b, n])
                scores = torch.stack(
                    [
                        torch.einsum("c,chw->hw", query[part], keys[part]) / width**0.5
                        for part in (slice(a * width, (a + 1) * width) for a in range(A))
                    ]
                ).masked_fill(padding[b], float("-inf"))
                flat = scores.flatten() if over_heads else scores.flatten(1)
                expected = flat.softmax(-1).view(A, 3, 4)
                torch.testing.assert_close(attention[b, n], expected)

    @pytest.mark.parametrize(("over_heads", "total"), [(False, A), (True, 1)])
    def test_sums_to_one_per_head_or_in_all_without_the_padding(self, padding, over_heads, total):
        module = AttentionMap(hidden_dim=C, num_heads=A, softmax_over_heads=over_heads)
        attention = module(torch.randn(B, N, C), torch.randn(B, C, 3, 4), padding)
        torch.testing.assert_close(attention.sum(dim=(2, 3, 4)), torch.full((B, N), float(total)))
        assert (attention[1, :, :, :, 3:] == 0).all()


class TestMaskHead:
    def test_equals_the_convolutions_on_everything_put_together(self, inputs):
        """The context's share of the first convolution may be computed once per image."""
        head = mask_head()
        masks = QueryMasks(head, **inputs, padded_size=(88, 124))[:]
        assert masks.shape == (B, N, 22, 31)
        for b in range(B):
            for n in range(N):
                x = torch.cat((inputs["context"][b], inputs["attention"][b, n]))[None]
                x = head.gn1(head.lay1(x)).relu()
                x = head.gn2(head.lay2(x)).relu()
                for i in range(1, 4):
                    finer = getattr(head, f"adapter{i}")(inputs["fpn_features"][i - 1][b : b + 1])
                    x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
                    x = getattr(head, f"gn{i + 2}")(getattr(head, f"lay{i + 2}")(x)).relu()
                torch.testing.assert_close(masks[b, n], head.out_lay(x)[0, 0], rtol=1e-4, atol=1e-5)

    def test_chosen_queries_have_the_masks_that_they_have_among_all(self, inputs):
        masks = QueryMasks(mask_head(), **inputs, padded_size=(88, 124))
        image, query = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 4])
        torch.testing.assert_close(masks[image, query], masks[:][image, query])

    def test_widths_and_names_are_the_official_ones(self):
        head = MaskHead(hidden_dim=256, num_heads=8, fpn_channels=(1024, 512, 256))
        shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        widths = (264, 264, 128, 64, 32, 16)
        for i in range(1, 6):
            assert shapes[f"lay{i}.weight"] == (widths[i], widths[i - 1], 3, 3)
            assert shapes[f"gn{i}.weight"] == (widths[i],)
        assert shapes["adapter1.weight"] == (128, 1024, 1, 1)
        assert shapes["adapter2.weight"] == (64, 512, 1, 1)
        assert shapes["adapter3.weight"] == (32, 256, 1, 1)
        assert shapes["out_lay.weight"] == (1, 16, 3, 3)
        assert head.gn1.num_groups == 8

    def test_convolutions_start_with_kaiming_weights_and_without_bias(self):
        for module in mask_head().modules():
            if isinstance(module, torch.nn.Conv2d):
                fan_in = module.weight[0].numel()
                assert module.weight.abs().max() <= (3 / fan_in) ** 0.5  # kaiming-uniform with a = 1
                assert (module.bias == 0).all()

    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"fpn_channels": (8, 4)}, "MASK_HEAD.IN_FEATURES"),
            ({"hidden_dim": 96}, "HIDDEN_DIM"),
            ({"num_heads": 4}, "NHEADS"),
        ],
    )
    def test_impossible_sizes_name_their_key(self, changes, key):
        with pytest.raises(ValueError, match=key), arguments_as_keys():
            MaskHead(**{"hidden_dim": 128, "num_heads": 8, "fpn_channels": (8, 4, 2), **changes})
