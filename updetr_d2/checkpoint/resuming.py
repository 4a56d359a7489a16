"""Whether ``--resume`` may go on: model, optimizer and classes of the checkpoint must be those of the run.

A changed learning rate, batch, schedule or set of images is no obstacle. A tensor that is missing or of another
shape is: PyTorch's fused optimizers do not compare shapes and would write into memory that is not theirs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from updetr_d2.checkpoint.safe_loading import CheckpointError

# Keys that change what the weights mean, or which of them are trained, without changing a shape. A dot at the end
# stands for all keys below.
_MEANING = (
    *("MODEL.META_ARCHITECTURE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
    *("MODEL.BACKBONE.NAME", "MODEL.RESNETS.", "MODEL.TIMM.NAME"),
    *("MODEL.DETR.NHEADS", "MODEL.DETR.PRE_NORM", "MODEL.DETR.IN_FEATURE"),
    *("MODEL.MASK_HEAD.IN_FEATURES", "MODEL.MASK_HEAD.FEATURE_SCALE", "MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS"),
    *("MODEL.MASK_HEAD.NUM_THING_CLASSES", "MODEL.MASK_HEAD.FREEZE_DETR", "MODEL.UPDETR.FREEZE_BACKBONE"),
    *("MODEL.BACKBONE.FREEZE_AT", "SOLVER.OPTIMIZER"),
)
# Keys that may explain tensors of another shape or number, beside those of the model.
_SHAPES = ("MODEL.", "DATASETS.TRAIN")
_NO_SHAPES = ("MODEL.WEIGHTS", "MODEL.DEVICE")
_NUM_EXAMPLES = 3


def describe_run(config: dict[str, object], classes: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint keeps of its run, plain values only.

    Args:
        config: every key, of :func:`updetr_d2.config.flat.flat_config`.
        classes: names that the class head stands for; empty for models that learn none.
    """
    return {"config": config, "classes": list(classes)}


def check_run(before: dict[str, Any] | None, now: dict[str, Any] | None, *, path: str) -> None:
    """Compare the runs of a checkpoint and of the config.

    Args:
        before, now: of :func:`describe_run`; None, of an older checkpoint, is not compared.
        path: of the checkpoint.

    Raises:
        CheckpointError: if the weights would mean something else, naming the key or the data set.
    """
    if not before or not now:
        return
    changed = _changes(before["config"], now["config"], _MEANING)
    if changed:
        raise _refusal(path, "; ".join(changed))
    if before["classes"] != now["classes"]:
        raise _refusal(
            path,
            f"the classes of DATASETS.TRAIN {now['config'].get('DATASETS.TRAIN')} were "
            f"{_some(before['classes'])} and are {_some(now['classes'])}",
        )


def check_model(
    saved: dict[str, Tensor],
    model: nn.Module,
    *,
    path: str,
    before: dict[str, Any] | None,
    now: dict[str, Any] | None,
) -> None:
    """Compare every tensor of a checkpoint with the model.

    Args:
        saved: state dict of the checkpoint.
        model: that goes on with it.
        path, before, now: as for :func:`check_run`.

    Raises:
        CheckpointError: if one is missing, unexpected or of another shape, naming the key that has changed.
    """
    ours = model.state_dict()
    problems = [
        *(f"{name} is missing" for name in ours.keys() - saved.keys()),
        *(f"{name} is not in the model" for name in saved.keys() - ours.keys()),
        *(
            f"{name} is {_shape(saved[name])} there and {_shape(ours[name])} here"
            for name in ours.keys() & saved.keys()
            if getattr(saved[name], "shape", None) != ours[name].shape
        ),
    ]
    if problems:
        changed = _changes(before["config"], now["config"], _SHAPES) if before and now else []
        because = f"; {'; '.join(changed)}" if changed else ""
        raise _refusal(path, f"it does not fit the model ({_summary(problems)}){because}")


def keys_of_shapes(
    shapes: Iterable[tuple[Sequence[int], Sequence[int]]],
    before: dict[str, Any] | None,
    now: dict[str, Any] | None,
) -> list[str]:
    """The keys of two runs that explain tensors of other shapes.

    Args:
        shapes: of each tensor, in the checkpoint and in the model.
        before, now: as for :func:`check_run`.

    Returns:
        for each key that was one side of a tensor and is another now, a text such as "MODEL.DETR.HIDDEN_DIM was
        128 and is 64".
    """
    if not before or not now:
        return []
    sides = {pair for theirs, ours in shapes for pair in zip(theirs, ours)}
    keys = tuple(
        key
        for key, value in now["config"].items()
        if type(value) is int and (before["config"].get(key), value) in sides
    )
    return _changes(before["config"], now["config"], keys)


def optimizer_state(
    optimizer: torch.optim.Optimizer,
    saved: dict[str, Any],
    *,
    names: Sequence[str],
    saved_names: Sequence[str] | None,
) -> dict[str, Any]:
    """The state that an optimizer goes on with: moments by the names of the parameters, all else of the config.

    Args:
        optimizer: fresh, with the learning rates and weight decays of the config.
        saved: its state dict in the checkpoint, whose groups may be others.
        names: of its parameters, in their order.
        saved_names: the same of the checkpoint; None, of an older one, if the order has not changed.

    Returns:
        a state dict for ``optimizer``.

    Raises:
        CheckpointError: if the moments are of another optimizer or of other parameters.
    """
    fresh = optimizer.state_dict()
    for key in ("betas", "momentum"):
        if (key in saved["param_groups"][0]) != (key in fresh["param_groups"][0]):
            raise CheckpointError(
                "--resume cannot go on: the state in the checkpoint is of another optimizer; set SOLVER.OPTIMIZER "
                "back, choose another OUTPUT_DIR, or start again without --resume."
            )
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    saved_names = names if saved_names is None and len(numbers) == len(names) else saved_names or ()
    number_of = dict(zip(saved_names, numbers))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    problems = [
        *(f"{name} is not optimized there" for name in sorted(set(names) - set(number_of))),
        *(f"{name} is not optimized here" for name in sorted(set(number_of) - set(names))),
    ]
    state = {}
    for place, (name, parameter) in enumerate(zip(names, parameters)):
        moments = saved["state"].get(number_of.get(name))
        if moments is None:  # without a gradient so far
            continue
        state[place] = moments
        problems += [
            f"{key} of {name} is {_shape(value)} there and {_shape(parameter)} here"
            for key, value in moments.items()
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape
        ]
    if problems:
        raise CheckpointError(
            f"--resume cannot go on with the optimizer of the checkpoint: {_summary(problems)}; set the key that "
            "has changed in MODEL back, choose another OUTPUT_DIR, or start again without --resume."
        )
    return {"state": state, "param_groups": fresh["param_groups"]}


def check_norm_placement(saved: Iterable[str], ours: Iterable[str], *, path: str) -> None:
    """Refuse weights of post-norm layers for pre-norm ones and the other way round: they fit but mean nothing.

    Args:
        saved: names of the tensors of a checkpoint.
        ours: names of the tensors of the model.
        path: of the checkpoint.

    Raises:
        CheckpointError: naming the key.
    """
    saved, ours = set(saved), set(ours)
    if not all(any(name.startswith("transformer.encoder.") for name in names) for names in (saved, ours)):
        return
    theirs, mine = ("transformer.encoder.norm.weight" in names for names in (saved, ours))
    if theirs != mine:
        raise CheckpointError(
            f"{path} holds a transformer of MODEL.DETR.PRE_NORM {theirs}, but MODEL.DETR.PRE_NORM is {mine}: set "
            f"it to {theirs}, or choose other weights."
        )


def _changes(before: dict[str, object], now: dict[str, object], keys: tuple[str, ...]) -> list[str]:
    """The keys that are among ``keys``, or below one of them, and whose values differ, in words."""
    return [
        f"{key} was {before[key]} and is {now[key]}"
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key]
        and key not in _NO_SHAPES
        and any(key == each or (each.endswith(".") and key.startswith(each)) for each in keys)
    ]


def _refusal(path: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"--resume cannot go on from {path}: {reason}. Set it back, choose another OUTPUT_DIR (as MODEL.WEIGHTS "
        "the file gives what fits), or start again without --resume."
    )


def _summary(problems: list[str]) -> str:
    more = f" and {len(problems) - _NUM_EXAMPLES} more" if len(problems) > _NUM_EXAMPLES else ""
    return ", ".join(sorted(problems)[:_NUM_EXAMPLES]) + more


def _some(names: Sequence[str], limit: int = 5) -> str:
    return f"{len(names)} ({', '.join(map(str, names[:limit]))}{', ...' if len(names) > limit else ''})"


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "a number" if hasattr(value, "shape") else type(value).__name__
