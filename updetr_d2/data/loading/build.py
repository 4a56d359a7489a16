"""Loaders of batches that survive bad files and continue exactly where a checkpoint left them."""

import logging
import math
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm

from updetr_d2.data.datasets.classes import advise_empty_images
from updetr_d2.data.datasets.names import DatasetDicts, load_dataset_dicts
from updetr_d2.data.loading.retry import RetryPolicy
from updetr_d2.data.loading.samples import (
    Mapper,
    SkippedFiles,
    StreamDataset,
    StreamSampler,
    TolerantDataset,
    block_sizes,
)
from updetr_d2.data.loading.workers import SampleLoader, check_sockets

logger = logging.getLogger(__name__)

# Batches that the workers prepare ahead, all together.
_PREFETCHED_BATCHES = 2
# Samples that a worker hands over together, at most: a batch should not wait long for a single worker.
_CHUNK_SIZE = 8


def load_training_set(cfg: CfgNode, *, labeled: bool = False) -> DatasetDicts:
    """Load the dataset dicts of ``DATASETS.TRAIN``.

    Args:
        cfg: ``DATASETS.TRAIN`` and ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` are read.
        labeled: the labels will be trained on; a warning says so if many images have none.

    Raises:
        ValueError: if no data set is named or they hold no images.
    """
    names, filter_empty = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    dataset_dicts = load_dataset_dicts(names, filter_empty=filter_empty and not labeled)
    if not labeled or not isinstance(dataset_dicts, list) or "annotations" not in dataset_dicts[0]:
        return dataset_dicts
    advise_empty_images(dataset_dicts, left_out=filter_empty)
    if not filter_empty:
        return dataset_dicts
    annotated = filter_images_with_only_crowd_annotations(dataset_dicts)
    if not annotated:
        raise ValueError(f"DATASETS.TRAIN = {tuple(names)} has images but not a single object.")
    return annotated


def load_test_set(dataset_name: str) -> DatasetDicts:
    """Load the dataset dicts of a data set of ``DATASETS.TEST``.

    Raises:
        ValueError: if it is empty.
    """
    return load_dataset_dicts([dataset_name], filter_empty=False, key="DATASETS.TEST")


def images_per_process(cfg: CfgNode) -> int:
    """Return this process's share of ``SOLVER.IMS_PER_BATCH``.

    Raises:
        ValueError: if it cannot be shared out.
    """
    world_size = comm.get_world_size()
    parts = world_size * cfg.SOLVER.ACCUMULATION_STEPS
    if cfg.SOLVER.ACCUMULATION_STEPS > 1 and cfg.SOLVER.IMS_PER_BATCH % parts:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) must be a multiple of the {world_size} processes "
            f"times SOLVER.ACCUMULATION_STEPS ({cfg.SOLVER.ACCUMULATION_STEPS})."
        )
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) must be a positive multiple of the number of "
            f"processes ({world_size})."
        )
    return cfg.SOLVER.IMS_PER_BATCH // world_size


def build_train_loader(
    cfg: CfgNode,
    *,
    mapper: Mapper,
    dataset_dicts: DatasetDicts | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    key: str = "DATASETS.TRAIN",
) -> "TrainLoader":
    """Build the endless loader of this process's share of each batch.

    Args:
        cfg: ``SOLVER.IMS_PER_BATCH``, ``DATALOADER.{NUM_WORKERS, ASPECT_RATIO_GROUPING,
            MAX_CONSECUTIVE_FAILURES, MIXED_SHARDS}``, ``INPUT.BATCHES_PER_SCALE``, ``SEED`` are read, and
            ``DATASETS.TRAIN`` without ``dataset_dicts``.
        mapper: makes a sample of a dataset dict; a file that it cannot use is replaced by another.
        dataset_dicts: the training set, if it is loaded already.
        batch_size: images of a batch in this process; None for its share of ``SOLVER.IMS_PER_BATCH``.
        seed: the same in all processes; None for ``SEED``.
        key: where the names of the data sets stand, for messages.

    Raises:
        ValueError: if the training set is empty or ``SOLVER.IMS_PER_BATCH`` cannot be shared out.
    """
    if batch_size is None:
        batch_size = images_per_process(cfg)
    if dataset_dicts is None:
        dataset_dicts = load_training_set(cfg)
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return TrainLoader(
        _compact(dataset_dicts),
        mapper,
        batch_size=batch_size,
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        max_failures=cfg.DATALOADER.MAX_CONSECUTIVE_FAILURES,
        mixed_shards=cfg.DATALOADER.MIXED_SHARDS,
        retry=RetryPolicy(cfg.DATALOADER.READ_RETRIES, cfg.DATALOADER.READ_RETRY_DELAY),
        pin_memory=_for_gpu(cfg),
        batches_per_scale=cfg.INPUT.BATCHES_PER_SCALE,
        key=key,
    )


def build_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    *,
    mapper: Mapper,
    dataset_dicts: DatasetDicts | None = None,
    batch_size: int = 1,
    split: bool = True,
) -> "TestLoader":
    """Build a loader of every image of a data set once, in order.

    Args:
        cfg: ``DATALOADER.NUM_WORKERS`` is read.
        dataset_name: a data set's name as in ``DATASETS.TEST``.
        mapper: makes a sample of a dataset dict; a file that it cannot use is left out.
        dataset_dicts: what to go through, if it is loaded already.
        batch_size: images of a batch.
        split: share the images out among the processes; else every process gets all of them.

    Raises:
        ValueError: if the data set is empty.
    """
    dataset = _compact(load_test_set(dataset_name) if dataset_dicts is None else dataset_dicts)
    indices = InferenceSampler(len(dataset)) if split else range(len(dataset))
    return TestLoader(
        dataset,
        mapper,
        indices,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        retry=RetryPolicy(cfg.DATALOADER.READ_RETRIES, cfg.DATALOADER.READ_RETRY_DELAY),
        pin_memory=_for_gpu(cfg),
    )


class TrainLoader:
    """Endless batches; images of a batch are all wide or all tall if ``group_by_aspect_ratio``.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict.
        batch_size: images of a batch in this process.
        seed: the same in all processes.
        num_workers: loader processes; 0 loads in this one.
        group_by_aspect_ratio: saves padding.
        max_failures: different images in a row that may fail before the data set counts as unusable.
        mixed_shards: shards whose images are shuffled together; 0 is all.
        retry: of images that a file system does not give at the moment.
        pin_memory: put the samples where copies to a GPU can run beside its work.
        batches_per_scale: batches of all processes in a row whose images have about the same scale; 0 gives each
            image its own.
        key: where the names of the data sets stand, for messages.

    Raises:
        OSError: if loader processes could not hand samples over.

    Attributes:
        skipped_files: files of the batches so far that could not be used.
    """

    def __init__(
        self,
        dataset: DatasetDicts,
        mapper: Mapper,
        *,
        batch_size: int,
        seed: int,
        num_workers: int,
        group_by_aspect_ratio: bool,
        max_failures: int,
        mixed_shards: int,
        retry: RetryPolicy,
        pin_memory: bool,
        batches_per_scale: int = 0,
        key: str = "DATASETS.TRAIN",
    ) -> None:
        if num_workers > 0:  # the loader itself is made with the first batch
            check_sockets()
        self.dataset = dataset
        self.mapper = mapper
        self.key = key
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.group_by_aspect_ratio = group_by_aspect_ratio
        self.max_failures = max_failures
        self.mixed_shards = mixed_shards
        self.retry = retry
        self.pin_memory = pin_memory
        self.batches_per_scale = batches_per_scale
        self.skipped_files = SkippedFiles()
        self._next_position = comm.get_rank()
        self._pending: list[int] = []

    def state_dict(self) -> dict:
        """Say where the stream stands after the last batch that was given out.

        Returns:
            dict of ``seed``; ``num_images`` of the data set; ``next_position``, the first position of this
            process that was not taken; ``pending``, positions taken that wait for their batch to fill.
        """
        return {
            "seed": self.seed,
            "num_images": len(self.dataset),
            "next_position": self._next_position,
            "pending": list(self._pending),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict` with the next ``iter()``, which gives exactly the batches after it.

        If the number of processes has changed, pass all of them the largest ``next_position`` and nothing
        ``pending``: each takes its share of the positions from there on. A state of labeled and unlabeled images
        gives the place among the labeled ones.
        """
        state = state.get("labeled", state)
        if state["num_images"] != len(self.dataset):
            logger.warning(
                "%s has %d images and had %d when the checkpoint was written: their order changes.",
                *(self.key, len(self.dataset), state["num_images"]),
            )
        self.seed = state["seed"]
        position = state["next_position"]
        self._next_position = position + (comm.get_rank() - position) % comm.get_world_size()
        self._pending = list(state["pending"])

    def __iter__(self) -> Iterator[list[dict]]:
        replayed = set(self._pending)
        buckets: dict[bool, list[tuple[int, dict]]] = {False: [], True: []}
        for loaded in self._load():
            for skipped in loaded.skipped:
                self.skipped_files.add(*skipped)
            if loaded.sample is None:
                name, reason = loaded.skipped[-1]
                several = len(loaded.skipped) < len(self.dataset)
                advice = (
                    ", or raise DATALOADER.MAX_CONSECUTIVE_FAILURES if so many may be bad" if several else ""
                )
                raise RuntimeError(
                    f"{len(loaded.skipped)} different images in a row could not be used, the last one {name} "
                    f"({reason}): check {self.key}{advice}."
                )
            if loaded.position not in replayed:
                self._pending.append(loaded.position)
                self._next_position = loaded.position + comm.get_world_size()
            bucket = buckets[self.group_by_aspect_ratio and _is_wide(loaded.sample)]
            bucket.append((loaded.position, loaded.sample))
            if len(bucket) == self.batch_size:
                batch = [sample for _, sample in bucket]
                given = {position for position, _ in bucket}
                bucket.clear()
                self._pending = [position for position in self._pending if position not in given]
                yield batch

    def _load(self) -> SampleLoader:
        sampler = StreamSampler(
            len(self.dataset),
            seed=self.seed,
            world_size=comm.get_world_size(),
            start=self._next_position,
            replay=self._pending,
            block_sizes=block_sizes(self.dataset),
            mixed_blocks=self.mixed_shards,
        )
        dataset = StreamDataset(
            self.dataset,
            self.mapper,
            seed=self.seed,
            max_tries=self.max_failures,
            retry=self.retry,
            positions_per_scale=self.batches_per_scale * self.batch_size * comm.get_world_size(),
        )
        return SampleLoader(
            dataset,
            sampler,
            num_workers=self.num_workers,
            prefetch=_PREFETCHED_BATCHES * self.batch_size,
            pin_memory=self.pin_memory,
            chunk_size=min(_CHUNK_SIZE, self.batch_size),
        )


class TestLoader:
    """Batches of the images in order; unusable ones are left out and logged, so the last batches may miss.

    Args:
        dataset: dataset dicts.
        mapper: makes a sample of a dataset dict.
        indices: of the images of this process.
        batch_size: images of a batch.
        num_workers: loader processes; 0 loads in this one.
        retry, pin_memory: see :class:`TrainLoader`.

    Attributes:
        skipped_files: files so far that could not be used.
    """

    __test__ = False  # not a test case, whatever pytest thinks

    def __init__(
        self,
        dataset: DatasetDicts,
        mapper: Mapper,
        indices: Sequence[int],
        *,
        batch_size: int,
        num_workers: int,
        retry: RetryPolicy,
        pin_memory: bool,
    ) -> None:
        self.batch_size = batch_size
        self.skipped_files = SkippedFiles()
        self._num_images = len(indices)
        self._loader = SampleLoader(
            TolerantDataset(dataset, mapper, retry=retry),
            indices,
            num_workers=num_workers,
            prefetch=_PREFETCHED_BATCHES * batch_size,
            pin_memory=pin_memory,
            chunk_size=min(_CHUNK_SIZE, batch_size),
        )

    def __len__(self) -> int:
        return math.ceil(self._num_images / self.batch_size)

    def __iter__(self) -> Iterator[list[dict]]:
        batch = []
        for loaded in self._loader:
            for skipped in loaded.skipped:
                self.skipped_files.add(*skipped)
            if loaded.sample is not None:
                batch.append(loaded.sample)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
        if self.skipped_files.reasons:
            logger.warning(
                "%d of %d samples of this evaluation (in this process) could not be made and are not counted.",
                self.skipped_files.num_skips,
                self._num_images,
            )


def _compact(dataset_dicts: DatasetDicts) -> DatasetDicts:
    """Lists become one array that the workers share; data sets of other kinds stay as they are."""
    if isinstance(dataset_dicts, list):
        return DatasetFromList(dataset_dicts, copy=False)
    return dataset_dicts


def _is_wide(sample: dict) -> bool:
    height, width = sample["image"].shape[-2:]
    return width > height


def _for_gpu(cfg: CfgNode) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
