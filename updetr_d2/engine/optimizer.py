"""Optimizers of DETR-style training through Detectron2's parameter helpers."""

import functools
import re
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd_optimizer
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

# The pyramid of a vision transformer is not pre-trained, so it learns as the heads do.
_PYRAMID = "backbone.simfp_"
# Parts of a detector from the image to the heads, and their layers: "backbone.res4", "backbone.blocks.3" (timm).
_PARTS = ("backbone.", "transformer.encoder.", "transformer.decoder.")
_LAYER = re.compile(r"backbone(?!\.simfp_)\.[a-z_]+(\.\d+|\d*)|transformer\.(encoder|decoder)\.layers\.\d+")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with its own learning rate for the backbone (semantics of the official code), or Detectron2's SGD.

    Args:
        cfg: ``SOLVER.{OPTIMIZER, BASE_LR, BACKBONE_MULTIPLIER, LAYER_DECAY, WEIGHT_DECAY, WEIGHT_DECAY_NORM,
            CLIP_GRADIENTS}`` are read; clipping of the kinds "norm" and "value" is part of each step.
        model: its parameters that require a gradient are optimized.

    Raises:
        ValueError: if ``SOLVER.OPTIMIZER`` is unknown.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    optimizer = _build_unclipped(cfg, model)
    if clip.ENABLED and clip.CLIP_TYPE != "full_model":
        optimizer.register_step_pre_hook(functools.partial(_clip_each_parameter, clip))
    return optimizer


def _build_unclipped(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    if cfg.SOLVER.OPTIMIZER == "SGD":
        # Detectron2's own clipping does not know "full_model" and fails on parameters without a gradient.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        return build_sgd_optimizer(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "ADAMW":
        raise ValueError(f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; use ADAMW or SGD.")

    def factor(parameter_name: str) -> float:
        if parameter_name.startswith("backbone.") and not parameter_name.startswith(_PYRAMID):
            return cfg.SOLVER.BACKBONE_MULTIPLIER
        slow = any(part in parameter_name for part in cfg.SOLVER.SLOW_PARAMETERS)
        return cfg.SOLVER.SLOW_MULTIPLIER if slow else 1.0

    layers = layers_below_heads(name for name, _ in model.named_parameters())

    def decayed(parameter_name: str) -> float:
        layer = layer_of(parameter_name)
        distance = len(layers) - layers.index(layer) if layer else 0
        return factor(parameter_name) * cfg.SOLVER.LAYER_DECAY**distance

    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        lr_factor_func=factor if cfg.SOLVER.LAYER_DECAY == 1 else decayed,
    )
    return torch.optim.AdamW(
        parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True
    )


def layers_below_heads(parameter_names: Iterable[str]) -> list[str]:
    """The layers that ``SOLVER.LAYER_DECAY`` tells apart, from the image to the heads.

    Args:
        parameter_names: in the order in which the modules run within each part.
    """
    layers = [layer for layer in dict.fromkeys(map(layer_of, parameter_names)) if layer]
    return sorted(layers, key=lambda layer: [layer.startswith(part) for part in _PARTS].index(True))


def layer_of(parameter_name: str) -> str:
    """The stage of the CNN, or the encoder or decoder layer, that a parameter belongs to; "" for all others."""
    found = _LAYER.match(parameter_name)
    return found[0] if found else ""


def _clip_each_parameter(clip: CfgNode, optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Clip the gradient of each parameter by itself, by its values or its norm, before a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if clip.CLIP_TYPE == "value":
                nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
            else:
                nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)


def full_model_clip_norm(cfg: CfgNode) -> float | None:
    """Bound on the gradient norm of the whole model, or None if clipping is off or of Detectron2's kinds."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_TYPE == "full_model" else None
