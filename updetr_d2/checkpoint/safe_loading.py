"""Reading checkpoint files of others without running any code from them.

Pickle files can name any function to be called while they are read. Here only tensors, NumPy arrays, plain
containers and ``argparse.Namespace`` (the training arguments in official checkpoints) are ever made.
"""

import argparse
import collections
import contextlib
import os
import pickle
import types
from collections.abc import Iterator
from typing import Any

import torch


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence for the user."""


_NUMPY_GLOBALS = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how Python 3 stores bytes in old protocols
    ("collections", "OrderedDict"),
}
_TORCH_GLOBALS = {
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(
        ("torch", f"{kind}Storage")
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Byte", "Bool")
    ),
    ("torch.serialization", "_get_layout"),
    ("argparse", "Namespace"),
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    allowed: frozenset[tuple[str, str]] = frozenset()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


class _NumpyUnpickler(_RestrictedUnpickler):
    allowed = frozenset(_NUMPY_GLOBALS)


class _TorchUnpickler(_RestrictedUnpickler):
    allowed = frozenset(_TORCH_GLOBALS)


def load_state_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Args:
        path: a file of ``torch.save`` (any suffix), a Detectron2 or Caffe2 model-zoo ``.pkl`` or a
            ``.safetensors`` file.

    Returns:
        What the file holds, a dict; NumPy arrays of a ``.pkl`` become tensors.

    Raises:
        CheckpointError: if the file is damaged, holds anything but the above or is not a dict.
        FileNotFoundError: if there is no such file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    if path.endswith(".safetensors"):
        return _load_safetensors(path)
    try:
        content = _load_pickle(path) if path.endswith(".pkl") else _load_torch(path)
    except Exception as error:  # readers raise all kinds of errors on damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} was not read: it is damaged or holds more than weights and plain values ({reason})."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    return content


def _load_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _to_tensors(_NumpyUnpickler(file, encoding="latin1").load())


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        return torch.as_tensor(value.copy())
    return value


def _load_torch(path: str) -> Any:
    if hasattr(torch.serialization, "add_safe_globals"):
        with _allow_namespace():
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch 2.3 has no allow-list for its weights-only reader: our own restricted unpickler does the same.
    restricted = types.SimpleNamespace(
        Unpickler=_TorchUnpickler, load=_load_one, __name__="restricted pickle"
    )
    return torch.load(path, map_location="cpu", pickle_module=restricted)


def _load_one(file: Any, **options: Any) -> Any:
    return _TorchUnpickler(file, **options).load()


@contextlib.contextmanager
def _allow_namespace() -> Iterator[None]:
    """Let the weights-only reader make ``argparse.Namespace`` objects, here only."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace, collections.Counter])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _load_safetensors(path: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f"Reading {path} needs the safetensors library: pip install safetensors."
        ) from None
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} was not read: it is not a safetensors file ({error}).") from error
