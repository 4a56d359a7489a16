"""The endless stream of training samples, each a function of the seed and its position alone.

Position p holds a fixed image with fixed random numbers. The processes take every world_size-th position, so
the stream does not depend on the number of loader workers, no two workers or processes draw the same numbers,
and continuing it needs no more than the position.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Sampler

from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.loading.order import PassOrder
from updetr_d2.data.loading.retry import RetryPolicy, may_pass
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.data.transforms.resize import shared_scale
from updetr_d2.utils.files import printable

logger = logging.getLogger(__name__)

Mapper = Callable[[dict], dict | None]
# What mappers raise for a file that cannot be used; Detectron2's own let Pillow's errors through.
_FILE_ERRORS = (OSError, SyntaxError, SizeMismatchError, Image.DecompressionBombError)


class SkippedFile(NamedTuple):
    """A file that could not be used, and why."""

    file_name: str
    reason: str


class StreamSample(NamedTuple):
    """What a loader worker hands over for one position.

    Attributes:
        position: of the stream (training) or index of the image (evaluation).
        sample: of the mapper; None if no image could be used.
        skipped: files that were tried before.
    """

    position: int
    sample: dict | None
    skipped: list[SkippedFile]


class SkippedFiles:
    """Files that could not be used, each logged once by name.

    Attributes:
        reasons: why, by file name, in the order of discovery.
        num_skips: how often an image was replaced or left out, repetitions included.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.num_skips = 0

    def add(self, file_name: str, reason: str) -> None:
        self.num_skips += 1
        file_name, reason = printable(file_name), printable(reason)
        if file_name not in self.reasons:
            self.reasons[file_name] = reason
            logger.warning("Skipping %s: %s", file_name, reason)

    @classmethod
    def merge(cls, parts: Iterable["SkippedFiles"]) -> "SkippedFiles":
        """Put together what several processes have skipped, without logging it again."""
        merged = cls()
        for part in parts:
            merged.reasons.update(part.reasons)
            merged.num_skips += part.num_skips
        return merged

    def summary(self, max_names: int = 20) -> str:
        """Return "none", or the counts and below them the first names with their reasons."""
        if not self.reasons:
            return "none"
        lines = [f"{name}: {reason}" for name, reason in list(self.reasons.items())[:max_names]]
        if len(self.reasons) > max_names:
            lines.append(f"... and {len(self.reasons) - max_names} more")
        return "\n  ".join([f"{len(self.reasons)} files, {self.num_skips} times", *lines])


class StreamSampler(Sampler):
    """Positions of one process in the endless stream, with the index of the image at each.

    Every ``num_images`` positions of all processes together are one pass over the data set in a new order.

    Args:
        num_images: size of the data set.
        seed: of the orders, the same in all processes.
        world_size: number of processes, the distance between positions of this one.
        start: first position of this process.
        replay: positions to give before ``start``.
        block_sizes: images of each shard of the data set; None if it has none.
        mixed_blocks: shards whose images are shuffled together (:class:`PassOrder`); 0 is all.
    """

    def __init__(
        self,
        num_images: int,
        *,
        seed: int,
        world_size: int,
        start: int,
        replay: Sequence[int] = (),
        block_sizes: Sequence[int] | None = None,
        mixed_blocks: int = 0,
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.world_size = world_size
        self.start = start
        self.replay = tuple(replay)
        self.block_sizes = block_sizes or [num_images]
        self.mixed_blocks = mixed_blocks
        self._epoch = -1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position in self.replay:
            yield position, self.image_at(position)
        position = self.start
        while True:
            yield position, self.image_at(position)
            position += self.world_size

    def image_at(self, position: int) -> int:
        """Return the index of the image at a position."""
        epoch, place = divmod(position, self.num_images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = PassOrder(
                self.block_sizes, seed=self.seed, epoch=epoch, mixed_blocks=self.mixed_blocks
            )
        return self._order[place]


def block_sizes(dataset: object) -> list[int] | None:
    """Number of images of each shard, None if not all of the data set is in shards."""
    if isinstance(dataset, ConcatDataset):
        parts = [block_sizes(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return [size for part in known for size in part] if len(known) == len(parts) else None
    return getattr(dataset, "block_sizes", None)


class StreamDataset(Dataset):
    """Samples by ``(position, index)``: seeds the mapper by the position, replaces images that cannot be used.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict with random numbers from the global generators.
        seed: of the random numbers.
        max_tries: different images to try for one position.
        retry: of images that a file system does not give at the moment.
        positions_per_scale: positions in a row whose images have the same scale; 0 gives each its own.
    """

    def __init__(
        self,
        dataset: DatasetDicts,
        mapper: Mapper,
        *,
        seed: int,
        max_tries: int,
        retry: RetryPolicy,
        positions_per_scale: int = 0,
    ) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.max_tries = max_tries
        self.retry = retry
        self.positions_per_scale = positions_per_scale

    def __getitem__(self, position_and_index: tuple[int, int]) -> StreamSample:
        position, index = position_and_index
        if not self.positions_per_scale:
            return self._sample(position, index)
        with shared_scale(self.seed, position // self.positions_per_scale):
            return self._sample(position, index)

    def _sample(self, position: int, index: int) -> StreamSample:
        skipped: list[SkippedFile] = []
        for candidate in self._candidates(position, index):
            result = try_to_map(
                self.mapper,
                self.dataset[candidate],
                seed=(self.seed, position, len(skipped)),
                retry=self.retry,
            )
            if not isinstance(result, SkippedFile):
                return StreamSample(position, result, skipped)
            skipped.append(result)
        return StreamSample(position, None, skipped)

    def _candidates(self, position: int, index: int) -> Iterator[int]:
        """Give the image of the position and, after it, different ones in a random order."""
        yield index
        rng = np.random.default_rng([self.seed, position])
        tried = {index}
        while len(tried) < min(self.max_tries, len(self.dataset)):
            candidate = int(rng.integers(len(self.dataset)))
            if candidate not in tried:
                tried.add(candidate)
                yield candidate


class TolerantDataset(Dataset):
    """Samples by index for evaluation; an image that cannot be used has the sample None.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict.
        retry: of images that a file system does not give at the moment.
    """

    def __init__(
        self,
        dataset: DatasetDicts,
        mapper: Mapper,
        *,
        retry: RetryPolicy,
    ) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.retry = retry

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> StreamSample:
        result = try_to_map(self.mapper, self.dataset[index], seed=(index,), retry=self.retry)
        if isinstance(result, SkippedFile):
            return StreamSample(index, None, [result])
        return StreamSample(index, result, [])


def try_to_map(
    mapper: Mapper, dataset_dict: dict, *, seed: tuple[int, ...], retry: RetryPolicy
) -> dict | SkippedFile:
    """Make a sample, or say which file could not be used and why.

    Args:
        mapper: makes a sample of a dataset dict.
        dataset_dict: for it.
        seed: of the global generators, the same for each try.
        retry: when to try again after an error of the file system that may pass.
    """
    for delay in (*retry.delays(), None):
        try:
            with seeded_generators(*seed):
                sample = mapper(dataset_dict)
        except (UnusableImageError, *_FILE_ERRORS) as error:
            skipped = _skipped(dataset_dict, error)
            cause = error.__cause__ if isinstance(error, UnusableImageError) else error
            if not may_pass(cause):
                return skipped
            if delay is None:
                return skipped._replace(reason=f"{skipped.reason}, tried {retry.retries + 1} times")
            logger.info("Trying %s again in %g s: %s", skipped.file_name, delay, skipped.reason)
            time.sleep(delay)
        else:
            return _skipped(dataset_dict) if sample is None else sample
    raise AssertionError("the last try returns")


def _skipped(dataset_dict: dict, error: Exception | None = None) -> SkippedFile:
    if isinstance(error, UnusableImageError):
        return SkippedFile(error.file_name, error.reason)
    file_name = str(dataset_dict.get("file_name", dataset_dict.get("image_id")))
    reason = "left out by the mapper" if error is None else f"{type(error).__name__}: {error}"
    return SkippedFile(file_name, reason)


@contextmanager
def seeded_generators(*key: int) -> Iterator[None]:
    """Seed the global CPU generators of random, NumPy and torch by ``key``; restore their states at the end.

    Without workers the mapper runs in the training process, whose own random numbers must not depend on it.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))  # torch.manual_seed would reseed the GPUs as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
