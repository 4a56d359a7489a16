"""Tensor names of Deformable DETR's and DINO's checkpoints, each paired with its name in our models.

As in ``layouts.py``, every ``*_pairs`` function finds the size of the model in the keys of a state dict. The
official code registers heads in several places and writes them several times: the ``*_copies`` functions name the
copies and the originals, of which the pairs speak, both in the official layout.
"""

import re
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


def _head_names(parent: str, number: int, kinds: Iterable[str] = ("class", "bbox")) -> list[str]:
    """Tensors of the official heads of one layer, under ``parent`` ("" or "transformer.decoder.")."""
    names = []
    for kind in kinds:
        prefix = f"{parent}{kind}_embed.{number}"
        names += join(prefix, LINEAR) if kind == "class" else _box_head_names(prefix)
    return names


def _is_two_stage(keys: Iterable[str]) -> bool:
    return any(key.startswith("transformer.enc_output.") for key in keys)


def _has_heads_of_layers(keys: list[str]) -> bool:
    """Whether every layer has heads of its own. Plain official models write one pair of heads six times."""
    official = any(key.startswith("backbone.0.body.") for key in keys)
    prefix = "transformer.decoder.bbox_embed." if official else "bbox_embed.0."
    return any(key.startswith(prefix) for key in keys)


def _shared_head_pairs() -> Pairs:
    """One class and one box head, which official checkpoints have under the number of each layer."""
    return list(zip(_head_names("", 0), join("class_embed", LINEAR) + _box_head_names("bbox_embed")))


def deformable_detr_pairs(keys: Iterable[str]) -> Pairs:
    """Official Deformable DETR, plain, refining boxes or in two stages, or ours."""
    keys = list(keys)
    names = _transformer_names(keys) + _input_names(keys)
    two_stage = _is_two_stage(keys)
    modules = ["reference_points"]
    if two_stage:
        modules = ["enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm"]
    for module in modules:
        names += join(f"transformer.{module}", LINEAR)
    if not two_stage or "query_embed.weight" in keys:
        names.append("query_embed.weight")
    pairs = [(name, name) for name in names]
    if _has_heads_of_layers(keys):
        for head in range(count_modules(keys, "transformer.decoder.layers") + two_stage):
            pairs += [(name, name) for name in _head_names("", head)]
    else:
        pairs += _shared_head_pairs()
    return pairs + backbone_pairs(keys, ("backbone.0.body.", "backbone."))


def deformable_detr_copies(keys: Iterable[str]) -> Pairs:
    """``(copy, original)`` of Deformable DETR's heads: those of further layers, or the decoder's."""
    keys = list(keys)
    layers = count_modules(keys, "transformer.decoder.layers")
    if not _has_heads_of_layers(keys):
        return [pair for i in range(1, layers) for pair in zip(_head_names("", i), _head_names("", 0))]
    two_stage = _is_two_stage(keys)
    kinds = ("class", "bbox") if two_stage else ("bbox",)
    return [
        pair
        for i in range(layers + two_stage)
        for pair in zip(_head_names("transformer.decoder.", i, kinds), _head_names("", i, kinds))
    ]


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


def dino_copies(keys: Iterable[str]) -> Pairs:
    """``(copy, original)`` of DINO's heads: one for all layers, which the decoder has too."""
    layers = count_modules(list(keys), "transformer.decoder.layers")
    places = [("", i) for i in range(1, layers)] + [("transformer.decoder.", i) for i in range(layers)]
    return [pair for place in places for pair in zip(_head_names(*place), _head_names("", 0))]


# How the transformers library names the parts of Deformable DETR (versions 4 and 5), in terms of the official
# names. A joint name of the three attention projections is made by `conversions.stack_projections`.
_TRANSFORMERS_RENAMES = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_proj\.", "input_proj."),
    (r"^model\.", "transformer."),
    (r"(\.encoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"(\.decoder\..*)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"\.encoder_attn_layer_norm\.", ".norm1."),
    (r"(\.decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.\[qkv\]_proj\.(weight|bias)$", r".in_proj_\1"),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
]


def _by_official_name(keys: Iterable[str]) -> dict[str, str]:
    """Official name -> name in the transformers library."""
    names = {}
    for key in keys:
        official = key
        for pattern, replacement in _TRANSFORMERS_RENAMES:
            official = re.sub(pattern, replacement, official)
        names[official] = key
    return names


def transformers_deformable_detr_pairs(keys: Iterable[str]) -> Pairs:
    """``DeformableDetrForObjectDetection`` of the transformers library."""
    theirs = _by_official_name(keys)
    return [(theirs.get(official, official), ours) for official, ours in deformable_detr_pairs(theirs)]


def transformers_deformable_detr_copies(keys: Iterable[str]) -> Pairs:
    """``(copy, original)`` of its heads."""
    theirs = _by_official_name(keys)
    return [
        (theirs.get(copy, copy), theirs.get(original, original))
        for copy, original in deformable_detr_copies(theirs)
    ]
