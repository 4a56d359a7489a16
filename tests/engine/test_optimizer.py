"""AdamW with a learning rate of its own for the backbone, weight decay on everything, one clip norm."""

import pytest
import torch
from detectron2.config import get_cfg
from helpers import tiny_model
from torch import nn

from updetr_d2 import add_updetr_config
from updetr_d2.engine.optimizer import build_optimizer, full_model_clip_norm, layer_of


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 1e-4, 1e-4, 1e-4
    return cfg


@pytest.fixture
def model():
    return nn.ModuleDict(
        {"backbone": nn.Conv2d(3, 4, 1), "transformer": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))}
    )


def group_of(optimizer, parameter):
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def test_backbone_multiplier_applies_to_the_backbone_only(cfg, model):
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert group_of(optimizer, model["backbone"].weight)["lr"] == pytest.approx(5e-5)
    assert group_of(optimizer, model["transformer"][0].weight)["lr"] == pytest.approx(1e-4)


def test_every_parameter_decays_norms_and_biases_too(cfg, model):
    optimizer = build_optimizer(cfg, model)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out(cfg, model):
    model["backbone"].requires_grad_(False)
    optimizer = build_optimizer(cfg, model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_sgd_is_detectron2s(cfg, model):
    cfg.SOLVER.OPTIMIZER = "SGD"
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == cfg.SOLVER.MOMENTUM


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
@pytest.mark.parametrize(("kind", "clipped"), [("value", 0.25), ("norm", 0.25 / 2), ("full_model", 1.0)])
def test_other_kinds_of_clipping_are_part_of_the_step(cfg, model, name, kind, clipped):
    """Gradients of ones, four of them for this bias; the training loop clips the norm of the whole model."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, kind, 0.25
    cfg.SOLVER.OPTIMIZER = name
    cfg.freeze()
    optimizer = build_optimizer(cfg, model)
    bias = model["backbone"].bias  # the other parameters have no gradient
    bias.grad = torch.ones_like(bias)
    optimizer.step()
    torch.testing.assert_close(bias.grad, torch.full((4,), clipped))


def test_unknown_optimizer_is_an_error(cfg, model):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'LION'; use ADAMW or SGD"):
        build_optimizer(cfg, model)


def test_full_model_clipping(cfg):
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.CLIP_TYPE, clip.CLIP_VALUE = "full_model", 0.1
    assert full_model_clip_norm(cfg) is None
    clip.ENABLED = True
    assert full_model_clip_norm(cfg) == 0.1
    clip.CLIP_TYPE = "norm"
    assert full_model_clip_norm(cfg) is None


def test_slow_parameters_have_a_learning_rate_of_their_own(cfg):
    cfg.SOLVER.SLOW_PARAMETERS, cfg.SOLVER.SLOW_MULTIPLIER = ("sampling_offsets",), 0.1
    layers = {"backbone": nn.Linear(2, 2), "sampling_offsets": nn.Linear(2, 2), "linear": nn.Linear(2, 2)}
    optimizer = build_optimizer(cfg, nn.ModuleDict(layers))
    rates = {name: group_of(optimizer, layer.bias)["lr"] for name, layer in layers.items()}
    assert rates["sampling_offsets"] == pytest.approx(1e-5)
    assert rates["linear"] == pytest.approx(1e-4)
    assert rates["backbone"] == pytest.approx(1e-4 * cfg.SOLVER.BACKBONE_MULTIPLIER)


def test_earlier_layers_learn_slower(cfg):
    """By hand: two stages, one encoder layer and two decoder layers below the heads, each at 0.5 of the next."""
    model = tiny_model("DETR", "MODEL.DETR.ENC_LAYERS", 1)
    cfg.SOLVER.LAYER_DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5, 0.1
    optimizer = build_optimizer(cfg, model)
    expected = {
        "backbone.conv1.weight": 0.1 * 0.5**5,
        "backbone.conv2.bias": 0.1 * 0.5**4,
        "transformer.encoder.layers.0.linear1.weight": 0.5**3,
        "transformer.decoder.layers.0.norm1.weight": 0.5**2,
        "transformer.decoder.layers.1.norm1.weight": 0.5,
        "transformer.decoder.norm.weight": 1.0,
        "class_embed.weight": 1.0,
        "query_embed.weight": 1.0,
    }
    parameters = dict(model.named_parameters())
    for name, factor in expected.items():
        assert group_of(optimizer, parameters[name])["lr"] == pytest.approx(1e-4 * factor), name
    # Parameters of the same settings share a group: the optimizer works through few of them.
    assert len(optimizer.param_groups) == 6


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.res4.3.conv1.weight", "backbone.res4"),
        ("backbone.stem.conv1.norm.bias", "backbone.stem"),
        ("backbone.blocks.2.0.bn1.weight", "backbone.blocks.2"),  # timm
        ("backbone.conv_stem.weight", "backbone.conv_stem"),
        ("transformer.encoder.layers.11.norm1.bias", "transformer.encoder.layers.11"),
        ("transformer.level_embed", ""),
        ("bbox_embed.layers.0.weight", ""),
    ],
)
def test_layers_are_known_by_the_names_of_their_parameters(name, layer):
    assert layer_of(name) == layer
