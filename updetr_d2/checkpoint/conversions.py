"""Checkpoints of other projects to ours and back, as pure functions on loaded checkpoints.

``convert(load_state_file(path), source="up-detr")`` gives what Detectron2's ``DetectionCheckpointer`` loads
by exact names, and a report that accounts for every tensor. The names themselves are in ``layouts.py``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from updetr_d2.checkpoint import coco_head, deformable_layouts, layouts
from updetr_d2.checkpoint.safe_loading import CheckpointError

StateDict = dict[str, torch.Tensor]

# Entry beside "model": by name of a tensor, the rows that no category of COCO uses; `restore` puts them back.
UNUSED_ROWS = "class_embed_unused_rows"

# A result with less than this share of the tensors that such a model has is refused.
_LEAST_MATCHED = 0.5


@dataclass(frozen=True)
class Source:
    """One layout that checkpoints come in.

    Args:
        pairs: their and our names, from the keys of a state dict (see ``layouts.py``).
        prefixes: what may stand before each of their names; the first one found is removed.
        any_names: whether every state dict passes for this layout, so that a fit says nothing.
        copies: names of tensors that this layout holds twice, and what they are copies of.
        restorable: whether :func:`restore` can write this layout.
        notes: what the user should know about configs.
    """

    pairs: Callable[[Iterable[str]], layouts.Pairs]
    prefixes: tuple[str, ...] = ("", "module.")
    any_names: bool = False
    copies: Callable[[Iterable[str]], layouts.Pairs] = lambda keys: []
    restorable: bool = False
    notes: tuple[str, ...] = ()


def _resnet_pairs(keys: Iterable[str]) -> layouts.Pairs:
    return [(theirs, "backbone." + ours) for theirs, ours in layouts.resnet_pairs(keys)]


_MOCO_PREFIXES = tuple(
    f"{wrapper}{encoder}." for wrapper in ("module.", "") for encoder in ("encoder_q", "base_encoder")
)

SOURCES = {
    "up-detr": Source(layouts.updetr_pairs, restorable=True),
    "detr": Source(layouts.detr_pairs, restorable=True),
    "detr-panoptic": Source(
        layouts.detr_panoptic_pairs,
        restorable=True,
        notes=(
            "set MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS to True for weights trained with DETR's code (its "
            "released ones) and to False for weights trained with UP-DETR's code",
        ),
    ),
    "deformable-detr": Source(
        deformable_layouts.deformable_detr_pairs,
        copies=deformable_layouts.deformable_detr_copies,
        restorable=True,
    ),
    "dino": Source(deformable_layouts.dino_pairs, copies=deformable_layouts.dino_copies, restorable=True),
    "transformers-detr": Source(
        layouts.transformers_detr_pairs,
        prefixes=("",),
        notes=("for segmentation models set MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS to True",),
    ),
    "transformers-deformable-detr": Source(
        deformable_layouts.transformers_deformable_detr_pairs,
        prefixes=("",),
        copies=deformable_layouts.transformers_deformable_detr_copies,
    ),
    "torchvision": Source(_resnet_pairs),
    "swav": Source(_resnet_pairs, prefixes=("module.", "")),
    "moco": Source(_resnet_pairs, prefixes=_MOCO_PREFIXES),
    "timm": Source(
        layouts.timm_pairs,
        any_names=True,
        notes=(
            "use it with MODEL.BACKBONE.NAME build_timm_backbone and the model's MODEL.TIMM.NAME, "
            "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD",
        ),
    ),
    "efficientnet-lite0": Source(
        layouts.efficientnet_lite0_pairs,
        notes=(
            "use it with MODEL.BACKBONE.NAME build_timm_backbone, MODEL.TIMM.NAME tf_efficientnet_lite0, "
            "MODEL.PIXEL_MEAN [127, 127, 127] and MODEL.PIXEL_STD [128, 128, 128]",
        ),
    ),
}

_DROP_REASONS = [
    (r"(^|\.)num_batches_tracked$", "BatchNorm counter, which frozen BatchNorm does not have"),
    (r"encoder_k\.|momentum_encoder\.", "momentum copy of the encoder"),
    (r"(^|\.)queue(_ptr)?$", "queue of negatives"),
    (r"predictor\.", "projection or prediction head"),
    (
        r"(^|\.)(projection_head|prototypes|fc|_fc)\b|^(classifier|head|conv_head)\b",
        "head of the task that it was trained for",
    ),
    (r"^(_conv_head|_bn1)\.", "head of the task that it was trained for"),
    (r"^(patch2query|feature_align)\.", "used in pre-training only"),
]


@dataclass
class ConversionReport:
    """What became of every tensor.

    Attributes:
        kept: names that stay as they are.
        renamed: ``(old, new)`` names.
        dropped: ``(name, why)`` of tensors that are not carried over.
        missing: names in the target layout that the source has no tensor for.
        notes: what else the user should know (class rows, config values).
    """

    kept: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def matched_share(self) -> float:
        """Share of the tensors of such a model that were found, in 0-1."""
        matched = len(self.kept) + len(self.renamed)
        return matched / max(matched + len(self.missing), 1)


def convert(checkpoint: dict[str, Any], *, source: str) -> tuple[dict[str, Any], ConversionReport]:
    """Convert a checkpoint of another project.

    Args:
        checkpoint: a state dict, or a dict that holds one as ``model`` or ``state_dict``; not changed.
        source: a name in :data:`SOURCES`.

    Returns:
        A checkpoint that ``MODEL.WEIGHTS`` takes: ``model`` (our names, same tensors), ``__author__``,
        ``matching_heuristics`` False and, for heads of COCO's classes, ``class_embed_unused_rows``.

    Raises:
        CheckpointError: if there are no tensors or most of such a model's tensors are not there.
    """
    state = stack_projections(state_dict_of(checkpoint))
    model, report = _convert_names(state, source)
    if report.matched_share < _LEAST_MATCHED:
        raise CheckpointError(_mismatch_message(state, source, report))
    converted = {"model": model, "__author__": "updetr_d2", "matching_heuristics": False}
    unused = _keep_coco_rows(model, report)
    report.notes += _config_notes(model)
    if unused:
        converted[UNUSED_ROWS] = unused
    report.notes += SOURCES[source].notes
    return converted, report


def restore(checkpoint: dict[str, Any], *, source: str) -> tuple[dict[str, Any], ConversionReport]:
    """Write a checkpoint of ours in the official layout: the reverse of :func:`convert`, bit for bit.

    Args:
        checkpoint: a converted checkpoint or one of our training runs; not changed.
        source: a restorable name in :data:`SOURCES`.

    Returns:
        ``{"model": official state dict}`` and the report.

    Raises:
        CheckpointError: if the source cannot be restored or the checkpoint does not hold such a model.
    """
    if not SOURCES[source].restorable:
        names = ", ".join(name for name, layout in SOURCES.items() if layout.restorable)
        raise CheckpointError(f"The layout of {source} cannot be written; these can: {names}.")
    state = dict(state_dict_of(checkpoint))
    notes = _restore_coco_rows(state, checkpoint.get(UNUSED_ROWS, {}))
    pairs = [(ours, theirs) for theirs, ours in SOURCES[source].pairs(state)]
    model, report = _rename(state, pairs)
    report.notes += notes
    if report.matched_share < _LEAST_MATCHED:
        raise CheckpointError(
            f"Only {len(report.kept) + len(report.renamed)} tensors of this checkpoint belong to a {source} "
            "model of updetr_d2; is it one of ours, and is --source right?"
        )
    copies = {copy: original for copy, original in SOURCES[source].copies(state) if original in model}
    model.update({copy: model[original].clone() for copy, original in copies.items()})
    if copies:
        report.notes.append(f"{len(copies)} tensors were written again under the other names that they have")
    return {"model": model}, report


def state_dict_of(checkpoint: dict[str, Any]) -> StateDict:
    """The state dict inside a checkpoint, without entries that are not tensors.

    Raises:
        CheckpointError: if there is none.
    """
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    state = {name: tensor for name, tensor in checkpoint.items() if isinstance(tensor, torch.Tensor)}
    if not state:
        entries = ", ".join(str(key) for key in list(checkpoint)[:5]) or "nothing"
        raise CheckpointError(f"The checkpoint holds no tensors where weights should be, only: {entries}.")
    return state


def stack_projections(state: StateDict) -> StateDict:
    """Join separate ``q_proj``, ``k_proj``, ``v_proj`` tensors as ``[qkv]_proj``, in PyTorch's order.

    Args:
        state: any state dict; one without such tensors comes back as it is.
    """
    stacked = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*_attn\.)([qkv])_proj\.(weight|bias)", name)
        parts = [f"{match[1]}{part}_proj.{match[3]}" for part in "qkv"] if match else []
        if not match or not all(part in state for part in parts):
            stacked[name] = tensor
        elif match[2] == "q":
            stacked[f"{match[1]}[qkv]_proj.{match[3]}"] = torch.cat([state[part] for part in parts])
    return stacked


def _convert_names(state: StateDict, source: str) -> tuple[StateDict, ConversionReport]:
    """Apply a source's names to a state dict, with the best-matching of its prefixes."""
    layout = SOURCES[source]
    attempts = []
    for prefix in layout.prefixes:
        bare = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
        copies = {prefix + copy: prefix + original for copy, original in layout.copies(bare)}
        # Files that write shared tensors once may have them under the other name.
        written = {original: copy for copy, original in copies.items() if copy in state}
        pairs = [
            (name if name in state else written.get(name, name), ours)
            for name, ours in ((prefix + theirs, ours) for theirs, ours in layout.pairs(bare))
        ]
        model, report = _rename(state, pairs)
        report.dropped = [(name, _copy_reason(state, name, copies) or why) for name, why in report.dropped]
        attempts.append((model, report))
    return max(attempts, key=lambda attempt: attempt[1].matched_share)


def _copy_reason(state: StateDict, name: str, copies: dict[str, str]) -> str | None:
    """Why a tensor that stands in a layout twice is dropped; None for others."""
    original = copies.get(name)
    if original not in state:
        return None
    same = torch.equal(state[name], state[original])
    return f"a copy of {original}" if same else f"not the copy of {original} that such models have here"


def _rename(state: StateDict, pairs: layouts.Pairs) -> tuple[StateDict, ConversionReport]:
    names = dict(pairs)
    model, report = {}, ConversionReport()
    for name, tensor in state.items():
        if name not in names:
            report.dropped.append((name, _drop_reason(name)))
            continue
        model[names[name]] = tensor
        if names[name] == name:
            report.kept.append(name)
        else:
            report.renamed.append((name, names[name]))
    report.missing = [name for name in names.values() if name not in model]
    return model, report


def _drop_reason(name: str) -> str:
    return next((reason for pattern, reason in _DROP_REASONS if re.search(pattern, name)), "no place for it")


def _mismatch_message(state: StateDict, source: str, report: ConversionReport) -> str:
    matched = len(report.kept) + len(report.renamed)
    specific = [name for name, layout in SOURCES.items() if not layout.any_names]
    scores = {name: _convert_names(state, name)[1].matched_share for name in specific}
    best = max(scores, key=scores.__getitem__)
    hint = f"it looks like --source {best}" if scores[best] >= _LEAST_MATCHED else "no known --source fits it"
    return (
        f"This is not a {source} checkpoint: only {matched} of {matched + len(report.missing)} tensors of "
        f"such a model were found among {len(state)} (such as {next(iter(state))}); {hint}."
    )


def _keep_coco_rows(model: StateDict, report: ConversionReport) -> StateDict:
    """Put the rows of COCO's classes in contiguous order; returns the others by name of their tensor."""
    all_unused, notes = {}, []
    for name, orders in coco_head.class_rows(model).items():
        before = len(model[name])
        model[name], unused = coco_head.to_contiguous(model[name], orders)
        if unused is not None:
            all_unused[name] = unused
            after = len(model[name])
            notes.append(f"{_module_of(name)}: {before} rows of COCO's ids became {after} contiguous ones")
    report.notes += dict.fromkeys(notes)
    return all_unused


def _restore_coco_rows(state: StateDict, all_unused: StateDict) -> list[str]:
    """Undo :func:`_keep_coco_rows` in place; returns notes."""
    notes = []
    for name, orders in coco_head.class_rows(state).items():
        # Older files have "weight" and "bias" of the one class head.
        unused = all_unused.get(name, all_unused.get(name.removeprefix("class_embed.")))
        before = len(state[name])
        state[name] = coco_head.to_official(state[name], unused, orders)
        after = len(state[name])
        if before != after:
            fill = "as they were" if unused is not None else "with probability 0"
            notes.append(
                f"{_module_of(name)}: {before} rows became {after} of COCO's ids, the unused ones {fill}"
            )
    return list(dict.fromkeys(notes))


def _module_of(name: str) -> str:
    """What a tensor belongs to, all modules of a list together."""
    return re.sub(r"(\.\d+)?\.(weight|bias)$", "", name)


def _config_notes(model: StateDict) -> list[str]:
    """Config values that the tensors of a detector tell."""
    head = next((name for name in ("class_embed.bias", "class_embed.0.bias") if name in model), None)
    if head is None:
        return []
    deformable = "transformer.level_embed" in model
    values = {"MODEL.DETR.NUM_CLASSES": len(model[head]) - (not deformable)}
    if "query_embed.weight" in model:
        values["MODEL.DETR.NUM_QUERIES"] = len(model["query_embed.weight"])
    if not deformable:
        values["MODEL.DETR.PRE_NORM"] = "transformer.encoder.norm.weight" in model
    elif "transformer.enc_out_class_embed.bias" not in model:
        values["MODEL.DEFORMABLE.BOX_REFINE"] = head == "class_embed.0.bias"
        values["MODEL.DEFORMABLE.TWO_STAGE"] = "transformer.enc_output.weight" in model
    return ["set " + ", ".join(f"{key} {value}" for key, value in values.items())]
