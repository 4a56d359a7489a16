"""DETR as a Detectron2 model: output formats, padding, gradients, frozen stages, precision, clear errors."""

import pytest
import torch
from helpers import RESNET18, WITHOUT_GRADIENT_AT_START, random_sample, tiny_model

from updetr_d2.modeling.meta_arch.detr import padding_mask, resize_padding
from updetr_d2.modeling.transformers.base import Pyramid

LOSSES = {"loss_ce", "loss_bbox", "loss_giou"}


def with_original_size(sample, height, width):
    return {**sample, "height": height, "width": width}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_training_returns_the_losses_of_every_layer(pre_norm):
    model = tiny_model("DETR", "MODEL.DETR.DEC_LAYERS", 3, "MODEL.DETR.PRE_NORM", pre_norm)
    losses = model([random_sample(64, 96), random_sample(96, 64, num_targets=0)])
    assert set(losses) == {name + suffix for name in LOSSES for suffix in ("", "_0", "_1")}
    assert all(torch.isfinite(loss) and loss.shape == () for loss in losses.values())
    assert set(model.training_metrics) == {"class_error", "cardinality_error", "padded_share"}


def test_deep_supervision_off_leaves_the_last_layer():
    model = tiny_model("DETR", "MODEL.DETR.DEEP_SUPERVISION", False)
    assert set(model([random_sample()])) == LOSSES


@torch.no_grad()
def test_inference_returns_all_queries_in_original_pixels():
    model = tiny_model("DETR").eval()
    sample = random_sample(64, 96)
    (small,) = model([with_original_size(sample, 64, 96)])
    (large,) = model([with_original_size(sample, 128, 288)])
    small, large = small["instances"], large["instances"]
    assert len(large) == 20
    assert large.image_size == (128, 288)
    torch.testing.assert_close(
        large.pred_boxes.tensor, small.pred_boxes.tensor * torch.tensor([3.0, 2.0, 3.0, 2.0])
    )
    heads = model.forward_heads([sample])
    probabilities = heads["pred_logits"][-1, 0].softmax(-1)[:, :4]
    torch.testing.assert_close(large.scores, probabilities.max(dim=1).values)
    assert torch.equal(large.pred_classes, probabilities.argmax(dim=1))


@torch.no_grad()
def test_inference_without_original_size_uses_that_of_the_input():
    model = tiny_model("DETR").eval()
    (result,) = model([{"image": random_sample(64, 96)["image"]}])
    assert result["instances"].image_size == (64, 96)


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_sample_does_not_depend_on_its_batch_mates(pre_norm):
    """Larger batch mates add padding on both sides; 70×50 is not a multiple of the stride."""
    model = tiny_model("DETR", "MODEL.DETR.PRE_NORM", pre_norm).eval()
    samples = [random_sample(70, 50), random_sample(64, 160), random_sample(128, 96)]
    together = model.forward_heads(samples)
    for i, sample in enumerate(samples):
        alone = model.forward_heads([sample])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][:, i], value[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_is_masked():
    """Without the mask the padding of a batch would change the predictions of its smaller image."""
    model = tiny_model("DETR").eval()
    images = model.preprocess_images([random_sample(64, 64), random_sample(64, 128)])
    features = model.backbone(images.tensor)["res5"]
    levels = model.transformer.project(model.input_proj, [features])
    queries = model.make_queries(())

    def states(padding):
        paddings = [resize_padding(padding, levels[0].shape[-2:])]
        pyramid = Pyramid({}, levels, paddings, 0, (64, 128), padding)
        return model.transformer.decode(pyramid, queries, model.class_embed, model.bbox_embed).states

    padding = torch.zeros(2, 64, 128, dtype=torch.bool)
    unmasked = states(padding)
    padding[0, :, 64:] = True
    masked = states(padding)
    assert not torch.allclose(masked[:, 0], unmasked[:, 0], atol=1e-3)
    torch.testing.assert_close(masked[:, 1], unmasked[:, 1])


@torch.no_grad()
def test_images_of_one_size_need_no_mask():
    model = tiny_model("DETR").eval()
    batch = [random_sample(64, 96), random_sample(64, 96)]
    images = model.preprocess_images(batch)
    assert padding_mask(images) is None
    no_padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    without, with_mask = (model.detect(images.tensor, mask).as_dict() for mask in (None, no_padding))
    torch.testing.assert_close(without, with_mask)
    assert padding_mask(model.preprocess_images([*batch, random_sample(64, 64)])).sum() == 64 * 32


def test_the_share_of_padding_is_logged():
    model = tiny_model("DETR")
    model([random_sample(64, 96), random_sample(32, 48)])
    assert float(model.training_metrics["padded_share"]) == pytest.approx(3 / 8)
    model([random_sample(64, 96), random_sample(64, 96)])
    assert float(model.training_metrics["padded_share"]) == 0


def test_pixels_are_normalised_with_the_config_values():
    model = tiny_model("DETR", "MODEL.PIXEL_MEAN", [10.0, 20.0, 30.0], "MODEL.PIXEL_STD", [1.0, 2.0, 4.0])
    image = torch.tensor([11, 22, 34], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    images = model.preprocess_images([{"image": image}])
    torch.testing.assert_close(images.tensor, torch.ones(1, 3, 32, 32))


def test_gradients_reach_all_that_trains_and_nothing_that_is_frozen():
    model = tiny_model("DETR", *RESNET18, "MODEL.BACKBONE.FREEZE_AT", 2)
    sum(model([random_sample(64, 64), random_sample(64, 64)]).values()).backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith(("backbone.stem", "backbone.res2")) for name in frozen)
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
        elif not name.startswith(WITHOUT_GRADIENT_AT_START):
            assert parameter.grad.abs().sum() > 0, name


def test_images_without_targets_train():
    """Every parameter still gets a gradient, which DistributedDataParallel needs."""
    model = tiny_model("DETR")
    losses = model([random_sample(num_targets=0), random_sample(num_targets=0)])
    assert float(losses["loss_bbox"].detach()) == float(losses["loss_giou"].detach()) == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_one_sample_can_be_learnt():
    """The whole chain from pixels to losses: some steps on one sample bring its boxes close."""
    model = tiny_model("DETR", "MODEL.DETR.PRE_NORM", True)
    sample = random_sample(64, 64, num_targets=2)
    history = []
    for _ in range(80):
        losses = model([sample])
        gradients = torch.autograd.grad(sum(losses.values()), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter -= 1e-3 * gradient.sign()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    assert history[-1]["loss_bbox"] < 0.5 * history[0]["loss_bbox"]
    assert history[-1]["loss_ce"] < 0.5 * history[0]["loss_ce"]


def test_bf16_autocast_keeps_boxes_and_losses_in_float32():
    model = tiny_model("DETR")
    batch = [random_sample(64, 64), random_sample(64, 96)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heads = model.forward_heads(batch)
        losses = model(batch)
    assert heads["pred_boxes"].dtype == heads["pred_logits"].dtype == torch.float32
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    exact = model(batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.1)


def test_config_sets_the_architecture():
    model = tiny_model(
        "DETR",
        *("MODEL.DETR.NUM_QUERIES", 7, "MODEL.DETR.NUM_CLASSES", 3, "MODEL.DETR.ENC_LAYERS", 1),
        *("MODEL.DETR.DEC_LAYERS", 4, "MODEL.DETR.IN_FEATURE", "res4", "MODEL.DETR.DROPOUT", 0.25),
    )
    heads = model.forward_heads([random_sample()])
    assert heads["pred_logits"].shape == (4, 1, 7, 4)
    assert heads["pred_boxes"].shape == (4, 1, 7, 4)
    assert model.input_proj.in_channels == 12  # of "res4"
    assert len(model.transformer.encoder.layers) == 1
    assert model.transformer.encoder.layers[0].dropout.p == 0.25
    assert model.transformer.encoder.layers[0].linear1.out_features == 48
    assert model.transformer.encoder.layers[0].self_attn.num_heads == 4


def test_a_feature_that_the_backbone_does_not_return_is_an_error():
    with pytest.raises(
        ValueError, match=r"IN_FEATURE is 'res6', but the backbone returns only \['res4', 'res5'\]"
    ):
        tiny_model("DETR", "MODEL.DETR.IN_FEATURE", "res6")
