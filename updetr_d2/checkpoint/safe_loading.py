"""Reading checkpoint files of others without running any code from them.

A pickle file can name any function to be called while it is read. Here only tensors, NumPy arrays, plain
containers and ``argparse.Namespace`` (the training arguments in official checkpoints) are ever made.
"""

import argparse
import contextlib
import os
import pickle
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence for the user."""


class _RestrictedUnpickler(pickle.Unpickler):
    """Refuses everything that is not on a list of ``(module, name)``."""

    allowed: frozenset[tuple[str, str]]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"Unsupported GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _array_from_buffer(
    buffer: Any, dtype: np.dtype, shape: tuple, order: Literal["A", "C", "F"]
) -> np.ndarray:
    """What NumPy names ``_frombuffer`` in pickles of protocol 5; raises ValueError for arrays of objects."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order).copy()


class _NumpyUnpickler(_RestrictedUnpickler):
    allowed = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),  # numpy 2
            ("numpy._core.multiarray", "scalar"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # bytes in old protocols
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return _array_from_buffer  # NumPy 1 and 2 have it in different modules
        return super().find_class(module, name)


def load_state_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Args:
        path: a file of ``torch.save`` (any suffix), a Detectron2 model-zoo ``.pkl`` or a ``.safetensors``
            file.

    Returns:
        What the file holds, a dict; NumPy arrays of a ``.pkl`` become tensors.

    Raises:
        CheckpointError: if the file is damaged, holds anything but the above or is not a dict.
        FileNotFoundError: if there is no such file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    readers = {".pkl": _load_pickle, ".safetensors": _load_safetensors}
    try:
        content = readers.get(os.path.splitext(path)[1], _load_torch)(path)
    except ImportError:
        raise CheckpointError(f"Reading {path} needs safetensors: pip install safetensors.") from None
    except Exception as error:  # the readers raise errors of every kind on damaged files
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            reason = f"it holds {refused[1]}, and only weights and plain values are read from checkpoints"
        else:
            reason = "it is damaged or not a checkpoint file"
        raise CheckpointError(f"{path} was not loaded: {reason}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    return content


def _load_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _to_tensors(_NumpyUnpickler(file, encoding="latin1").load())


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def _load_safetensors(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # optional dependency

    return load_file(path)


def _load_torch(path: str) -> Any:
    with _allow_namespace():
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _allow_namespace() -> Iterator[None]:
    """Let the weights-only reader make ``argparse.Namespace`` objects, here only."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
