"""Millions of strings in one array of bytes, which loader processes share."""

import os
from collections.abc import Iterable
from itertools import accumulate

import numpy as np


class PackedNames:
    """File names by number; unlike a list of strings it costs little more than their bytes.

    Args:
        names: the file names; those that are not UTF-8 (surrogate escapes) are kept as they are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.fromiter(accumulate(map(len, encoded)), dtype=np.int64, count=len(encoded))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        begin = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[begin : self._ends[index]].tobytes())
