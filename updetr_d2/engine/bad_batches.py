"""Batches that gave a loss or gradient that is not finite: kept in files, to run them again."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn

from updetr_d2.checkpoint.run_files import save_atomically
from updetr_d2.checkpoint.safe_loading import load_state_file
from updetr_d2.engine.step_seed import seed_step

# Folder in OUTPUT_DIR.
BAD_BATCHES = "bad_batches"
_KIND = "__class__"


def save_bad_batch(
    output_dir: str, batch: list[dict], *, iteration: int, rank: int, seed: int, scalars: dict[str, float]
) -> str:
    """Save what is needed to repeat the step, but for the weights.

    Args:
        output_dir: of the run.
        batch: samples as the mapper made them.
        iteration: of the step, from 0.
        rank: of the process that had the batch.
        seed: of the run.
        scalars: losses and gradient norm of the step.

    Returns:
        path of the file, for :func:`load_bad_batch`.

    Raises:
        SaveError: if it cannot be written.
    """
    content = {
        "batch": _to_plain(batch),
        "iteration": iteration,
        "rank": rank,
        "seed": seed,
        "scalars": scalars,
    }
    path = os.path.join(_folder(output_dir), f"iteration_{iteration:07d}_rank_{rank}.pth")
    save_atomically(content, path)
    return path


def save_weights(output_dir: str, model: nn.Module, *, iteration: int) -> str:
    """Save the weights that the step of an iteration started from, for ``MODEL.WEIGHTS``; returns the path."""
    path = os.path.join(_folder(output_dir), f"iteration_{iteration:07d}_weights.pth")
    save_atomically({"model": model.state_dict(), "meta_architecture": type(model).__name__}, path)
    return path


def load_bad_batch(path: str) -> dict[str, Any]:
    """Read a file of :func:`save_bad_batch` without running code from it.

    Returns:
        dict of ``batch``, a list of samples that a model takes, ``iteration``, ``rank``, ``seed`` and
        ``scalars``.
    """
    saved = load_state_file(path)
    return {**saved, "batch": _from_plain(saved["batch"])}


def replay(model: nn.Module, saved: dict[str, Any]) -> dict[str, Tensor]:
    """Give a batch of :func:`load_bad_batch` to a model in training mode, with the random numbers of its step.

    Returns:
        the losses. In a run of several processes those of boxes were divided by the mean number of targets
        per process instead of this batch's.
    """
    seed_step(saved["seed"], saved["rank"], saved["iteration"])
    return model.train()(saved["batch"])


def _folder(output_dir: str) -> str:
    folder = os.path.join(output_dir, BAD_BATCHES)
    os.makedirs(folder, exist_ok=True)
    return folder


def _to_plain(value: Any) -> Any:
    """Containers, tensors and plain values in the place of Detectron2's structures and NumPy's arrays."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, Instances):
        fields = _to_plain(value.get_fields())
        return {_KIND: "Instances", "image_size": list(value.image_size), "fields": fields}
    if isinstance(value, (Boxes, BitMasks)):
        return {_KIND: type(value).__name__, "tensor": value.tensor.cpu()}
    if isinstance(value, PolygonMasks):
        return {_KIND: "PolygonMasks", "polygons": _to_plain(value.polygons)}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind == "Instances":
        return Instances(tuple(value["image_size"]), **_from_plain(value["fields"]))
    if kind == "PolygonMasks":
        return PolygonMasks([[polygon.numpy() for polygon in each] for each in value["polygons"]])
    if kind is not None:
        return {"Boxes": Boxes, "BitMasks": BitMasks}[kind](value["tensor"])
    return {key: _from_plain(item) for key, item in value.items()}
