"""Tensor names of Deformable DETR's and DINO's checkpoints, each paired with its name in our models.

As in ``layouts.py``, every ``*_pairs`` function finds the size of the model in the keys of a state dict. The
official code registers heads in several places and writes them several times; what no pair names is a copy.
"""

from collections.abc import Iterable

from updetr_d2.checkpoint.layouts import LINEAR, Pairs, attention_names, backbone_pairs, count_modules, join

_ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def _attention_names(prefix: str) -> list[str]:
    return [name for part in _ATTENTION for name in join(f"{prefix}.{part}", LINEAR)]


def _transformer_names(keys: list[str]) -> list[str]:
    """Encoder and decoder: the same names in both projects and ours."""
    names = ["transformer.level_embed"]
    for layer in range(count_modules(keys, "transformer.encoder.layers")):
        prefix = f"transformer.encoder.layers.{layer}"
        names += _attention_names(f"{prefix}.self_attn")
        for module in ("norm1", "linear1", "linear2", "norm2"):
            names += join(f"{prefix}.{module}", LINEAR)
    for layer in range(count_modules(keys, "transformer.decoder.layers")):
        prefix = f"transformer.decoder.layers.{layer}"
        names += _attention_names(f"{prefix}.cross_attn")
        names += attention_names(f"{prefix}.self_attn")
        for module in ("norm1", "norm2", "linear1", "linear2", "norm3"):
            names += join(f"{prefix}.{module}", LINEAR)
    return names


def _input_names(keys: list[str]) -> list[str]:
    return [
        name
        for level in range(count_modules(keys, "input_proj"))
        for part in (0, 1)
        for name in join(f"input_proj.{level}.{part}", LINEAR)
    ]


def _box_head_names(prefix: str) -> list[str]:
    return [name for layer in range(3) for name in join(f"{prefix}.layers.{layer}", LINEAR)]


def deformable_detr_pairs(keys: Iterable[str]) -> Pairs:
    """Official Deformable DETR, plain, refining boxes or in two stages, or ours."""
    keys = list(keys)
    pairs = [(name, name) for name in _transformer_names(keys) + _input_names(keys)]
    two_stage = any(key.startswith("transformer.enc_output.") for key in keys)
    modules = ["reference_points"]
    if two_stage:
        modules = ["enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm"]
    for module in modules:
        pairs += [(name, name) for name in join(f"transformer.{module}", LINEAR)]
    if not two_stage or "query_embed.weight" in keys:
        pairs.append(("query_embed.weight", "query_embed.weight"))
    if _has_heads_of_layers(keys):
        for head in range(count_modules(keys, "class_embed")):
            names = join(f"class_embed.{head}", LINEAR) + _box_head_names(f"bbox_embed.{head}")
            pairs += [(name, name) for name in names]
    else:
        pairs += _shared_head_pairs()
    return pairs + backbone_pairs(keys, ("backbone.0.body.", "backbone."))


def _has_heads_of_layers(keys: list[str]) -> bool:
    """Whether every layer has heads of its own. Plain official models write one pair of heads six times."""
    official = any(key.startswith("backbone.0.body.") for key in keys)
    return any(
        key.startswith("transformer.decoder.bbox_embed." if official else "bbox_embed.1.") for key in keys
    )


def _shared_head_pairs() -> Pairs:
    """One class and one box head, which official checkpoints have under the number of each layer."""
    theirs = join("class_embed.0", LINEAR) + _box_head_names("bbox_embed.0")
    return list(zip(theirs, join("class_embed", LINEAR) + _box_head_names("bbox_embed")))


def dino_pairs(keys: Iterable[str]) -> Pairs:
    """Official DINO with two stages, or ours."""
    keys = list(keys)
    names = _transformer_names(keys) + _input_names(keys) + ["label_enc.weight"]
    for module in ("enc_output", "enc_output_norm", "enc_out_class_embed", "decoder.norm"):
        names += join(f"transformer.{module}", LINEAR)
    names += _box_head_names("transformer.enc_out_bbox_embed")
    for layer in range(2):
        names += join(f"transformer.decoder.ref_point_head.layers.{layer}", LINEAR)
    pairs = [(name, name) for name in names]
    pairs.append(("transformer.tgt_embed.weight", "query_embed.weight"))
    pairs += _shared_head_pairs()
    return pairs + backbone_pairs(keys, ("backbone.0.body.", "backbone."))
