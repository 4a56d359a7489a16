"""DINO's transformer: what differs from Deformable DETR's two stages, and denoising in a whole detector."""

import pytest
import torch
from helpers import DINO, TWO_STAGE, random_sample, tiny_model
from torch import nn

from updetr_d2.modeling.transformers import DINOTransformer

DENOISING = ("MODEL.DENOISING.NUM_QUERIES", 12)
BOTH = {"dino": DINO, "two-stage": (*TWO_STAGE, *DENOISING)}


def seeded_model(*options):
    torch.manual_seed(0)
    model = tiny_model("DETR", *options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layers.2.weight") or "sampling_offsets.weight" in name:
                parameter.normal_(0, 0.1)
    return model


def test_one_pair_of_heads_for_all_layers_and_one_for_the_encoder():
    model = tiny_model("DETR", *DINO)
    assert isinstance(model.transformer, DINOTransformer)
    assert isinstance(model.class_embed, nn.Linear)
    assert model.transformer.enc_out_class_embed is not model.class_embed
    assert model.query_embed.weight.shape == (20, 32)
    assert model.label_enc.weight.shape == (5, 32)
    assert not hasattr(model.transformer, "pos_trans")


def detect(model, samples, *, denoising):
    images = model.preprocess_images(samples)
    targets = model.box_targets(samples) if denoising else None
    return model.compute_outputs(images, samples, targets)


@torch.no_grad()
@pytest.mark.parametrize("options", BOTH.values(), ids=BOTH)
def test_denoising_queries_change_nothing_for_the_matching_ones(options):
    """The same weights with and without noised objects in the decoder."""
    model = seeded_model(*options).eval()
    samples = [random_sample(), random_sample(num_targets=1)]
    plain = detect(model, samples, denoising=False)
    noised = detect(model, samples, denoising=True)
    assert "dn" in noised.auxiliary
    assert "dn" not in plain.auxiliary
    torch.testing.assert_close(noised.logits, plain.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noised.boxes, plain.boxes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", BOTH.values(), ids=BOTH)
def test_denoising_queries_of_an_image_see_the_image_and_their_group(options):
    """Other noise for one group changes this group's outputs alone."""
    model = seeded_model(*options).eval()
    samples = [random_sample(num_targets=2)]
    outputs = []
    for change in (0.0, 0.2):
        denoise = model.denoising

        def changed(targets, embed_labels, change=change, denoise=denoise):
            torch.manual_seed(3)
            noised = denoise(targets, embed_labels)
            noised.queries.boxes[:, : noised.queries.group_size, 2:] += change
            return noised

        model.denoising = changed
        outputs.append(detect(model, samples, denoising=True).auxiliary["dn"].outputs.boxes)
        model.denoising = denoise
    difference = (outputs[0] - outputs[1]).abs().amax(dim=(0, 1, 3))
    assert len(difference) == 12  # three groups of two positives and two negatives
    assert difference[:4].min() > 1e-3
    assert difference[4:].max() < 1e-5


def test_denoising_losses_by_hand():
    """Boxes without noise: each positive is its object, so that only the heads move them."""
    model = tiny_model("DETR", *DINO, "MODEL.DENOISING.BOX_NOISE", 0.0, "MODEL.DENOISING.LABEL_NOISE", 0.0)
    losses = model([random_sample(num_targets=3), random_sample(num_targets=0)])
    # Fresh box heads change nothing.
    assert losses["loss_bbox_dn"].item() == pytest.approx(0, abs=1e-2)
    assert losses["loss_giou_dn"].item() == pytest.approx(0, abs=2e-2)
    assert losses["loss_ce_dn"] > 0


def test_batches_without_objects_have_no_denoising_losses():
    losses = tiny_model("DETR", *DINO)([random_sample(num_targets=0)])
    assert not any("_dn" in name for name in losses)


@torch.no_grad()
def test_proposals_are_ranked_by_their_best_class():
    """The encoder's outputs that are trained are those of the best tokens."""
    model = seeded_model(*DINO).eval()
    proposals = detect(model, [random_sample()], denoising=False).auxiliary["enc"].outputs
    assert proposals.logits.shape == (1, 1, 20, 4)
    best = proposals.logits[0, 0].amax(dim=-1)
    assert torch.equal(best, best.sort(descending=True).values)
