"""Hand samples from loader workers to the training process: several at a time, all their tensors in one buffer.

PyTorch hands every tensor over as a file of shared memory of its own, which the training process opens, maps and
pins one by one; that takes it longer than everything else that it does for a sample.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

# Tensors begin at multiples of it (bytes), as those that PyTorch allocates.
_ALIGNMENT = 64


class Packed:
    """Any objects, whose tensors lie in one buffer.

    Attributes:
        buffer: uint8 ``[bytes]``.
        skeleton: the pickled objects, with places in the buffer for tensors.
    """

    def __init__(self, buffer: Tensor, skeleton: bytes) -> None:
        self.buffer = buffer
        self.skeleton = skeleton

    def pin_memory(self) -> "Packed":
        """The same in page-locked memory; PyTorch's loader calls it."""
        return Packed(self.buffer.pin_memory(), self.skeleton)

    def unpack(self) -> Any:
        """The objects; their tensors are parts of the buffer, which lives as long as one of them."""
        return _Unpickler(io.BytesIO(self.skeleton), self.buffer).load()


def pack(objects: Any) -> Packed:
    """Put all plain CPU tensors of some objects into one buffer.

    Args:
        objects: what pickle can take.
    """
    skeleton = io.BytesIO()
    pickler = _Pickler(skeleton)
    pickler.dump(objects)
    return Packed(pickler.joined(), skeleton.getvalue())


class PackedSamples(Dataset):
    """Chunks of a data set's samples by lists of what it is indexed by, packed."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Sequence) -> Packed:
        return pack([self.dataset[index] for index in indices])


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors: list[Tensor] = []
        self._places: dict[int, tuple] = {}
        self._end = 0

    def persistent_id(self, obj: Any) -> tuple | None:
        if (
            type(obj) is not Tensor
            or obj.device.type != "cpu"
            or obj.layout != torch.strided
            or obj.requires_grad
        ):
            return None
        if id(obj) not in self._places:  # the list keeps the tensors, and so their ids
            self._places[id(obj)] = (self._end, obj.dtype, tuple(obj.shape))
            self._tensors.append(obj)
            num_bytes = obj.numel() * obj.element_size()
            self._end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return self._places[id(obj)]

    def joined(self) -> Tensor:
        buffer = torch.empty(self._end, dtype=torch.uint8)
        for tensor in self._tensors:
            _place(buffer, *self._places[id(tensor)]).copy_(tensor)
        return buffer


class _Unpickler(pickle.Unpickler):
    """Of what a worker of this process has packed: the bytes come from nowhere else."""

    def __init__(self, file: io.BytesIO, buffer: Tensor) -> None:
        super().__init__(file)
        self._buffer = buffer

    def persistent_load(self, place: tuple) -> Tensor:
        return _place(self._buffer, *place)


def _place(buffer: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The part of a buffer that holds a tensor."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return buffer[start : start + num_bytes].view(dtype).view(shape)
