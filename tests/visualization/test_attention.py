"""Attention maps show what the model computed, where it is in the image."""

import numpy as np
import pytest
import torch
from helpers import random_sample, tiny_model

from updetr_d2.visualization.attention import decoder_attention, draw_attention_maps


def test_attention_maps_are_distributions_that_avoid_padding():
    torch.manual_seed(0)
    model = tiny_model("DETR").eval()
    batch = [random_sample(64, 96), random_sample(64, 64)]
    attention = decoder_attention(model, batch)
    assert attention.shape == (2, 20, 2, 3)
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 20))
    assert (attention[1, :, :, 2] == 0).all()


def test_looking_at_the_attention_changes_nothing():
    torch.manual_seed(0)
    model = tiny_model("DETR").eval()
    batch = [random_sample()]
    with torch.no_grad():
        before = model.forward_heads(batch)["pred_boxes"]
        decoder_attention(model, batch)
        torch.testing.assert_close(model.forward_heads(batch)["pred_boxes"], before)


def test_only_transformers_that_attend_to_the_whole_image_can_be_looked_at():
    options = ("MODEL.TRANSFORMER.NAME", "DeformableTransformer", "MODEL.DEFORMABLE.IN_FEATURES", ("res5",))
    model = tiny_model("DETR", *options).eval()
    with pytest.raises(ValueError, match=r"DeformableTransformer .* MODEL\.TRANSFORMER\.NAME"):
        decoder_attention(model, [random_sample()])


def test_attention_panels_are_bright_where_the_query_looks():
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    attention = torch.zeros(2, 2, 3)
    attention[0, 0, 0] = attention[1, 1, 2] = 1  # top left and bottom right
    picture = draw_attention_maps(
        image, attention, np.array([[1, 1, 30, 30], [60, 30, 90, 60]]), ["a", "b"], stride=(32, 32)
    ).astype(int)
    height, width = picture.shape[:2]
    panels = picture[:, : width // 2].sum(axis=2), picture[:, width // 2 :].sum(axis=2)

    def corner(panel, bottom, right):
        rows = (
            slice(int(0.65 * height), int(0.9 * height))
            if bottom
            else slice(int(0.25 * height), int(0.4 * height))
        )
        columns = (
            slice(int(0.75 * width / 2), int(0.9 * width / 2))
            if right
            else slice(int(0.1 * width / 2), int(0.25 * width / 2))
        )
        return panel[rows, columns].mean()

    assert corner(panels[0], False, False) > corner(panels[0], True, True) + 50
    assert corner(panels[1], True, True) > corner(panels[1], False, False) + 50
