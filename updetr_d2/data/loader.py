"""Loaders that survive bad files and continue exactly where a checkpoint left them.

The training data are one endless stream: position p of it holds a fixed image with fixed random numbers, both
functions of (seed, p) alone. The processes take every world_size-th position, so the stream does not depend on
the number of loader workers, and continuing it needs no more than the position.
"""

import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from updetr_d2.data.images import UnusableImageError

logger = logging.getLogger(__name__)

Mapper = Callable[[dict], dict | None]


def load_training_set(cfg: CfgNode) -> list[dict]:
    """The dataset dicts of ``DATASETS.TRAIN``.

    Raises:
        ValueError: if no data set is named or all are empty.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a data set, such as '(\"folder:/data/photos\",)'.")
    dicts = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    if not dicts:
        raise ValueError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} holds no images.")
    return dicts


def build_train_loader(cfg: CfgNode, *, mapper: Mapper, dataset_dicts: list[dict] | None = None) -> "TrainLoader":
    """The endless loader of this process's share of each batch.

    Args:
        cfg: ``SOLVER.IMS_PER_BATCH``, ``DATALOADER.{NUM_WORKERS, ASPECT_RATIO_GROUPING,
            MAX_CONSECUTIVE_FAILURES}``, ``SEED`` are read, and ``DATASETS.TRAIN`` without ``dataset_dicts``.
        mapper: makes a sample of a dataset dict; a file that it cannot use is replaced by another.
        dataset_dicts: the training set, if it is loaded already.

    Raises:
        ValueError: if the training set is empty or ``SOLVER.IMS_PER_BATCH`` cannot be shared out.
    """
    if dataset_dicts is None:
        dataset_dicts = load_training_set(cfg)
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) must be a multiple of the number of processes "
            f"({world_size})."
        )
    return TrainLoader(
        DatasetFromList(dataset_dicts, copy=False),
        mapper,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        max_failures=cfg.DATALOADER.MAX_CONSECUTIVE_FAILURES,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str, *, mapper: Mapper, split: bool = True) -> "TestLoader":
    """Every image of a data set once, in order.

    Args:
        cfg: ``DATALOADER.NUM_WORKERS`` is read.
        dataset_name: a registered data set.
        mapper: makes a sample of a dataset dict; a file that it cannot use is left out.
        split: share the images out among the processes; else every process gets all of them.

    Raises:
        ValueError: if the data set is empty.
    """
    dicts = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    if not dicts:
        raise ValueError(f"The data set '{dataset_name}' (DATASETS.TEST) holds no images.")
    dataset = DatasetFromList(dicts, copy=False)
    sampler = InferenceSampler(len(dataset)) if split else range(len(dataset))
    return TestLoader(dataset, mapper, sampler, num_workers=cfg.DATALOADER.NUM_WORKERS)


class SkippedFiles:
    """Files that could not be used, each logged once by name."""

    def __init__(self) -> None:
        self.reasons: OrderedDict[str, str] = OrderedDict()
        self.num_skips = 0

    def add(self, file_name: str, reason: str) -> None:
        self.num_skips += 1
        if file_name not in self.reasons:
            self.reasons[file_name] = reason
            logger.warning("Skipping %s: %s", file_name, reason)

    def summary(self, max_names: int = 20) -> str:
        """One line for none, else the counts and the first names with their reasons."""
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
        num_images: size n of the data set.
        seed: of the orders.
        rank, world_size: this process and the number of processes.
        start: first position of this process, by default its rank.
        replay: positions to give before ``start``.
    """

    def __init__(
        self,
        num_images: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
        start: int | None = None,
        replay: list[int] = (),
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.world_size = world_size
        self.start = rank if start is None else start
        self.replay = list(replay)
        self._epoch = -1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position in self.replay:
            yield position, self.image_at(position)
        position = self.start
        while True:
            yield position, self.image_at(position)
            position += self.world_size

    def image_at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        return int(self._order[place])


class StreamDataset(Dataset):
    """Samples by (position, index): seeds the mapper by the position, replaces images that cannot be used.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict from the global generators.
        seed: of the random numbers.
        max_failures: images in a row that may fail before the data set counts as unusable.
    """

    def __init__(self, dataset: Dataset, mapper: Mapper, *, seed: int, max_failures: int) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.max_failures = max_failures

    def __getitem__(self, position_and_index: tuple[int, int]) -> dict:
        position, index = position_and_index
        skipped = []
        for candidate in self._candidates(position, index):
            with seeded_generators(self.seed, position, len(skipped)):
                sample, failure = try_to_map(self.mapper, self.dataset[candidate])
            if sample is not None:
                return {**sample, "stream_position": position, "skipped_files": skipped}
            skipped.append(failure)
        name, reason = skipped[-1]
        raise RuntimeError(
            f"{len(skipped)} images in a row could not be used, the last is {name} ({reason}): check "
            "DATASETS.TRAIN, or raise DATALOADER.MAX_CONSECUTIVE_FAILURES."
        )

    def _candidates(self, position: int, index: int) -> Iterator[int]:
        """The image of the position and, after it, different ones in a random order."""
        yield index
        rng = np.random.default_rng([self.seed, position, 1])
        tried = {index}
        while len(tried) < min(self.max_failures, len(self.dataset)):
            candidate = int(rng.integers(len(self.dataset)))
            if candidate not in tried:
                tried.add(candidate)
                yield candidate


class TrainLoader:
    """Endless batches; images of a batch are all wide or all tall if ``group_by_aspect_ratio``.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict.
        batch_size: images of a batch in this process.
        seed: the same in all processes.
        num_workers: loader processes; 0 loads in this one.
        group_by_aspect_ratio: saves padding.
        max_failures: see :class:`StreamDataset`.
    """

    def __init__(
        self,
        dataset: Dataset,
        mapper: Mapper,
        *,
        batch_size: int,
        seed: int,
        num_workers: int,
        group_by_aspect_ratio: bool,
        max_failures: int,
    ) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.group_by_aspect_ratio = group_by_aspect_ratio
        self.max_failures = max_failures
        self.skipped_files = SkippedFiles()
        self._next_position = comm.get_rank()
        self._pending: list[int] = []

    def state_dict(self) -> dict:
        """Where the stream stands after the last batch that was given out.

        Returns:
            ``seed``, ``next_position`` and ``pending``, the positions that wait for their batch to fill.
        """
        return {
            "seed": self.seed,
            "next_position": self._next_position,
            "pending": list(self._pending),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`; call before iterating."""
        self.seed = state["seed"]
        self._next_position = state["next_position"]
        self._pending = list(state["pending"])

    def __iter__(self) -> Iterator[list[dict]]:
        world_size = comm.get_world_size()
        sampler = StreamSampler(
            len(self.dataset),
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=world_size,
            start=self._next_position,
            replay=self._pending,
        )
        samples = DataLoader(
            StreamDataset(self.dataset, self.mapper, seed=self.seed, max_failures=self.max_failures),
            batch_size=None,  # batches are made here, after the sizes are known
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=limit_worker_threads,
        )
        replayed = set(self._pending)
        buckets: dict[bool, list[dict]] = {}
        for sample in samples:
            for file_name, reason in sample.pop("skipped_files"):
                self.skipped_files.add(file_name, reason)
            position = sample["stream_position"]
            if position not in replayed:
                self._pending.append(position)
                self._next_position = position + world_size
            bucket = buckets.setdefault(self._bucket_of(sample), [])
            bucket.append(sample)
            if len(bucket) == self.batch_size:
                batch = [{k: v for k, v in x.items() if k != "stream_position"} for x in bucket]
                used = {x["stream_position"] for x in bucket}
                self._pending = [p for p in self._pending if p not in used]
                bucket.clear()
                yield batch

    def _bucket_of(self, sample: dict) -> bool:
        height, width = sample["image"].shape[-2:]
        return self.group_by_aspect_ratio and width > height


class TestLoader:
    """Batches of one image, in order; unusable images are left out and logged.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict.
        sampler: indices of the images of this process.
        num_workers: loader processes; 0 loads in this one.
    """

    __test__ = False  # not a test case, whatever pytest thinks

    def __init__(self, dataset: Dataset, mapper: Mapper, sampler, *, num_workers: int) -> None:
        self.skipped_files = SkippedFiles()
        self._loader = DataLoader(
            _MappedDataset(dataset, mapper),
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=limit_worker_threads,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for sample, failure in self._loader:
            if sample is None:
                self.skipped_files.add(*failure)
            else:
                yield [sample]


class _MappedDataset(Dataset):
    def __init__(self, dataset: Dataset, mapper: Mapper) -> None:
        self.dataset = dataset
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[dict | None, tuple[str, str] | None]:
        return try_to_map(self.mapper, self.dataset[index])


def try_to_map(mapper: Mapper, dataset_dict: dict) -> tuple[dict | None, tuple[str, str] | None]:
    """Make a sample, or say which file could not be used and why: ``(sample, None)`` or ``(None, failure)``."""
    file_name = dataset_dict["file_name"]
    try:
        sample = mapper(dataset_dict)
    except UnusableImageError as error:
        return None, (error.file_name, error.reason)
    except OSError as error:
        return None, (file_name, str(error))
    return (sample, None) if sample is not None else (None, (file_name, "left out by the mapper"))


class seeded_generators:  # noqa: N801  (a context manager, like torch.no_grad)
    """Seed the global generators of random, NumPy and torch by ``key``; restore their states at the end."""

    def __init__(self, *key: int) -> None:
        self.seeds = np.random.SeedSequence(key).generate_state(3)

    def __enter__(self) -> None:
        self.states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(int(self.seeds[0]))
        np.random.seed(self.seeds[1])
        torch.default_generator.manual_seed(int(self.seeds[2]))

    def __exit__(self, *_) -> None:
        random.setstate(self.states[0])
        np.random.set_state(self.states[1])
        torch.set_rng_state(self.states[2])


def limit_worker_threads(_worker_id: int) -> None:
    """One thread a worker: the workers are the parallelism."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
