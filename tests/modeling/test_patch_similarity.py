"""The score of a patch's query counts how much what its box shows is like the patch, whatever the padding."""

import pytest
import torch
from helpers import DINO, random_sample, tiny_model
from torch.nn import functional as F

from updetr_d2.modeling.patch_similarity import PatchSimilarity, pool_boxes

SIMILAR = ("MODEL.UPDETR.PATCH_SIMILARITY", True)
WHOLE = torch.ones(1, 2)
KINDS = pytest.mark.parametrize("options", [(), DINO], ids=["softmax", "focal"])


def quadrants() -> torch.Tensor:
    """A map ``[1, 2, 8, 8]`` whose quarters have the features (1, 0), (0, 1), (-1, 0) and (0, -1), row by row."""
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, :4, :4], features[0, 1, :4, 4:] = 1, 1
    features[0, 0, 4:, :4], features[0, 1, 4:, 4:] = -1, -1
    return features


def test_boxes_are_pooled_where_they_are():
    boxes = torch.tensor([[[[0.25, 0.25, 0.25, 0.25], [0.75, 0.25, 0.25, 0.25], [0.5, 0.25, 1.0, 0.25]]]])
    pooled = pool_boxes(quadrants(), WHOLE, boxes)
    torch.testing.assert_close(pooled[:2], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert pooled[2, 0] > 0.2 and pooled[2, 1] > 0.2


def test_padding_changes_nothing():
    boxes = torch.rand(2, 1, 5, 4) * 0.4 + 0.25
    padded = F.pad(quadrants(), (0, 8, 0, 4), value=100.0)
    torch.testing.assert_close(
        pool_boxes(padded, torch.tensor([[8 / 16, 8 / 12]]), boxes), pool_boxes(quadrants(), WHOLE, boxes)
    )


def test_a_cosine_times_the_scale():
    """Before it has learned anything, with statistics of mean 0 and variance 1."""
    module = PatchSimilarity(2).eval()
    boxes = torch.tensor([[[0.25, 0.25, 0.2, 0.2]] * 4])[None]
    patches = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0], [1.0, 1.0]]])
    expected = module.scale * torch.tensor([[[1.0, 0.0, -1.0, 0.5**0.5]]])
    torch.testing.assert_close(module(quadrants(), WHOLE, boxes, patches), expected, atol=1e-4, rtol=1e-4)


def test_patches_are_standardized_over_the_batch():
    """The large part that is the same in all patches is gone."""
    torch.manual_seed(0)
    module = PatchSimilarity(7)
    features = [100 + torch.randn(count, 7) for count in (5, 5, 2)]
    normalized = module.standardize_patches(features)
    assert [len(each) for each in normalized] == [5, 5, 2]
    there = torch.cat(normalized)
    torch.testing.assert_close(there.mean(dim=0), torch.zeros(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(there.var(dim=0, correction=0), torch.ones(7), atol=1e-3, rtol=0)
    (alone,) = module.eval().standardize_patches(features[2:])
    torch.testing.assert_close(alone[:1], module.standardize_patches([features[2][:1]])[0])


def test_a_single_patch_is_no_statistic_but_no_error():
    module = PatchSimilarity(7)
    assert torch.isfinite(module.standardize_patches([torch.randn(1, 7)])[0]).all()
    assert module.patch_norm.num_batches_tracked == 0


@KINDS
def test_it_is_added_to_every_class_but_no_object(options):
    model = tiny_model("UPDETR", *options, *SIMILAR).eval()
    sample = random_sample(num_patches=5)
    with torch.no_grad():
        with_it = model.forward_heads([sample])
        model.patch_similarity.scale.zero_()
        without = model.forward_heads([sample])
    added = with_it["pred_logits"] - without["pred_logits"]
    classes, no_object = added[..., :2], added[..., 2:]
    assert classes.abs().amax() > 0.1 and not no_object.any()
    torch.testing.assert_close(classes[..., 0], classes[..., 1])
    torch.testing.assert_close(with_it["pred_boxes"], without["pred_boxes"])


@KINDS
def test_it_learns_from_the_class_loss(options):
    model = tiny_model("UPDETR", *options, *SIMILAR)
    model([random_sample(num_patches=5), random_sample(num_patches=3)])["loss_ce"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.patch_similarity.parameters())


def test_a_sample_does_not_depend_on_its_batch_mates():
    model = tiny_model("UPDETR", *SIMILAR).eval()
    small, large = random_sample(64, 64, num_patches=2), random_sample(96, 128, num_patches=5)
    with torch.no_grad():
        alone = model.forward_heads([small])["pred_logits"]
        together = model.forward_heads([small, large])["pred_logits"][:, :1, : alone.shape[2]]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_boxes_are_pooled_in_pixels_of_the_image(monkeypatch):
    """An image of 40 rows in a batch of 64 fills 40 / 64 of the features, not two of their tokens."""
    model = tiny_model("UPDETR", *SIMILAR).eval()
    seen = []
    forward = model.patch_similarity.forward
    monkeypatch.setattr(
        model.patch_similarity, "forward", lambda *args: seen.append(args[1]) or forward(*args)
    )
    with torch.no_grad():
        model.forward_heads([random_sample(64, 64, num_patches=2), random_sample(40, 64, num_patches=2)])
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, 1.0], [1.0, 40 / 64]]))


def test_without_the_key_there_is_none():
    assert not any("patch_similarity" in name for name in tiny_model("UPDETR").state_dict())
    assert "patch_similarity" in tiny_model("UPDETR").pretraining_only
