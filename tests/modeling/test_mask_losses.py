"""Mask losses by hand, against their definitions, and in sampled points."""

import pytest
import torch
from torch.nn import functional as F

from updetr_d2.config.build import arguments_as_keys
from updetr_d2.modeling.mask_losses import PointSampling, corresponding_values, dice_loss, focal_loss


def test_dice_by_hand():
    # p = 1/2 in four pixels, two of them true: 1 - (2 * 1 + 1) / (2 + 2 + 1).
    logits, targets = torch.zeros(1, 4), torch.tensor([[1.0, 1, 0, 0]])
    assert dice_loss(logits, targets).item() == pytest.approx(1 - 3 / 5)


def test_focal_by_hand():
    # -alpha_t (1 - p_t)^2 log p_t with p = 1/2; alpha_t is 0.25 on the mask and 0.75 elsewhere.
    logits, targets = torch.zeros(1, 4), torch.tensor([[1.0, 0, 0, 0]])
    expected = (0.25 + 3 * 0.75) * 0.25 * torch.log(torch.tensor(2.0)) / 4
    assert focal_loss(logits, targets).item() == pytest.approx(expected.item())


def test_perfect_masks_cost_nothing_and_every_mask_has_its_own_value():
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    logits = 50 * (2 * targets - 1)
    assert focal_loss(logits, targets).tolist() == pytest.approx([0, 0])
    assert dice_loss(logits, targets).tolist() == pytest.approx([0, 0])
    logits[1] *= -1
    assert dice_loss(logits, targets).tolist()[0] == pytest.approx(0)
    assert dice_loss(logits, targets).tolist()[1] > 0.5


def test_exact_values_are_all_pixels_of_the_padded_target():
    logits, masks = torch.randn(2, 3, 4), torch.rand(2, 12, 16) > 0.5
    predicted, true = corresponding_values(logits, masks, None)
    upsampled = F.interpolate(logits[None], size=(12, 16), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(predicted, upsampled.flatten(1))
    assert torch.equal(true, masks.flatten(1).float())


def test_points_have_the_values_of_prediction_and_target_at_the_same_place():
    """Both are the same ramp over the padded image, so they agree wherever the points are."""
    ramp = torch.linspace(-1, 1, 64).expand(1, 64, 64).clone()
    predicted, true = corresponding_values(ramp, ramp > 0, PointSampling(500, 3.0, 0.75))
    assert predicted.shape == true.shape == (1, 500)
    away_from_the_edge = predicted.abs() > 0.05
    assert torch.equal(predicted[away_from_the_edge] > 0, true[away_from_the_edge] > 0.5)
    # Three quarters of the points are the uncertain third of the candidates.
    assert predicted.abs().median() < 0.35


def test_losses_in_points_approach_the_exact_ones():
    """With random points only, the mean over points estimates the mean over pixels."""
    blocks = torch.rand(4, 2, 2) > 0.5
    masks = blocks.repeat_interleave(64, dim=1).repeat_interleave(64, dim=2)
    logits = 3 * torch.randn(4, 8, 8)
    exact = focal_loss(*corresponding_values(logits, masks, None))
    sampled = focal_loss(*corresponding_values(logits, masks, PointSampling(100_000, 1.0, 0.0)))
    torch.testing.assert_close(sampled, exact, rtol=0.03, atol=0.0)


def test_gradient_flows_through_the_points():
    logits = torch.randn(1, 8, 8, requires_grad=True)
    values = corresponding_values(logits, torch.rand(1, 16, 16) > 0.5, PointSampling(64, 3.0, 0.75))
    dice_loss(*values).sum().backward()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("values", [(0, 3.0, 0.75), (10, 0.5, 0.75), (10, 3.0, 1.5)])
def test_impossible_sampling_names_the_keys(values):
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS"), arguments_as_keys():
        PointSampling(*values)
