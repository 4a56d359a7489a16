"""In which order the passes over a data set go, such that any place of any pass is found at once."""

from collections.abc import Sequence

import numpy as np


class PassOrder:
    """The random order of one pass: every image once.

    A data set in blocks (shards) is read some blocks at a time: the blocks come in a random order and the
    images of ``mixed_blocks`` of them are shuffled together. Disks and networks then read from few places, and
    no permutation of all images is held in memory. Without blocks all images are shuffled.

    Args:
        block_sizes: number of images of each block; the images are numbered through.
        seed, epoch: decide the order.
        mixed_blocks: blocks to shuffle together; 0 is all.
    """

    def __init__(self, block_sizes: Sequence[int], *, seed: int, epoch: int, mixed_blocks: int = 0) -> None:
        self._key = (seed, epoch)
        self._block_ends = np.cumsum(block_sizes)
        num_groups = -(-len(block_sizes) // mixed_blocks) if mixed_blocks else 1
        blocks: np.ndarray = np.arange(len(block_sizes))
        if num_groups > 1:
            blocks = np.random.default_rng(self._key).permutation(blocks)
        self._groups = np.array_split(blocks, num_groups)
        self._group_ends = np.cumsum([sum(block_sizes[b] for b in group) for group in self._groups])
        self._current = -1

    def __getitem__(self, place: int) -> int:
        """Return the number of the image at a place of the pass; places in a row are fast."""
        group = int(np.searchsorted(self._group_ends, place, side="right"))
        if group != self._current:
            self._images = self._shuffled(group)
            self._current = group
        begin = self._group_ends[group - 1] if group else 0
        return int(self._images[place - begin])

    def _shuffled(self, group: int) -> np.ndarray:
        if len(self._groups) == 1:
            return np.random.default_rng(self._key).permutation(self._block_ends[-1])
        ends = self._block_ends
        ranges = [np.arange(ends[b - 1] if b else 0, ends[b]) for b in self._groups[group]]
        return np.random.default_rng([*self._key, group]).permutation(np.concatenate(ranges))
