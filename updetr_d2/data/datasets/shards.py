"""Images in tar shards as a data set: ``DATASETS.TRAIN: ("shards:/data/{0000..0099}.tar",)``.

Millions of files are slow to list, to copy and to open on network file systems; some thousands of images in
one archive are not. ``tools/pack_shards.py`` makes shards; those of other tools for WebDataset work as well.
"""

import functools
import glob
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.utils.data import Dataset

from updetr_d2.data.datasets.names import QUERY_PATCH_EVALUATOR, add_source
from updetr_d2.data.datasets.packed_names import PackedNames
from updetr_d2.data.datasets.remote_files import is_remote
from updetr_d2.data.datasets.shard_index import ShardIndex, load_index, member_url

logger = logging.getLogger(__name__)

FORM = "shards:/data/{0000..0099}.tar"
# Shards whose indices are read at the same time: the time goes into waiting for the file system.
_INDEX_THREADS = 8


class ShardedImages(Dataset):
    """Detectron2 dataset dicts ``{"file_name", "image_id"}`` of the images in tar archives.

    ``file_name`` names shard, member and byte range in the form that Detectron2's ``PathManager`` opens
    (:func:`~.shard_index.member_url`); ``image_id`` is ``SHARD::MEMBER``, relative to the folder
    that all shards have in common.

    Args:
        shards: absolute paths of the archives.
        indices: of each.

    Attributes:
        block_sizes: number of images of each shard, see :class:`~updetr_d2.data.loading.order.PassOrder`.
    """

    def __init__(self, shards: list[str], indices: list[ShardIndex]) -> None:
        self.block_sizes = [len(index.names) for index in indices]
        self._shards = PackedNames(shards)
        self._folder = os.path.commonpath([os.path.dirname(shard) for shard in shards])
        self._ends = np.cumsum(self.block_sizes)
        self._names = PackedNames([name for index in indices for name in index.names])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, str]:
        name = self._names[index]
        index %= len(self)
        shard = self._shards[int(np.searchsorted(self._ends, index, side="right"))]
        return {
            "file_name": member_url(shard, name, self._offsets[index], self._sizes[index]),
            "image_id": f"{os.path.relpath(shard, self._folder)}::{name}",
        }

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (self[i] for i in range(len(self)))


def load_shards(pattern: str) -> ShardedImages:
    """List the images of the shards that a pattern names.

    A shard that ends too early or is damaged is used as far as it can be read, with a warning.

    Args:
        pattern: see :func:`expand_pattern`.

    Raises:
        ValueError: if a shard is missing, compressed or no tar archive, or there are no images.
    """
    started = time.perf_counter()
    shards = expand_pattern(pattern)
    missing = [shard for shard in shards if not is_remote(shard) and not os.path.isfile(shard)]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(shards)} shards of 'shards:{pattern}' in DATASETS do not exist, the "
            f"first one is {missing[0]}."
        )
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        indices = list(pool.map(_load_index, shards))
    images = ShardedImages(shards, indices)
    if not len(images):
        raise ValueError(f"The shards 'shards:{pattern}' in DATASETS hold no images.")
    logger.info(
        "Found %d images in %d shards (%s) in %.1f s",
        *(len(images), len(shards), pattern, time.perf_counter() - started),
    )
    return images


def expand_pattern(pattern: str) -> list[str]:
    """The absolute paths of the shards that a pattern names, each once, in its order.

    Args:
        pattern: a path or URL with ranges or lists in braces (``{0000..0099}``, ``{a,b}``), a path with wildcards
            (``*``), or several with ``::`` between them; ``~`` is expanded.

    Raises:
        ValueError: if the braces do not match, nothing fits the wildcards, or the webdataset package is missing.
    """
    literal = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isfile(literal):  # braces and brackets that are part of its name
        return [literal]
    try:
        from braceexpand import UnbalancedBracesError  # type: ignore[attr-defined]  # not in its stubs
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ValueError(
            f"'shards:{pattern}' in DATASETS needs the webdataset package: pip install webdataset."
        ) from None
    try:
        paths = [_absolute(path) for path in expand_urls(pattern) if path]
    except UnbalancedBracesError as error:
        raise ValueError(f"The braces of 'shards:{pattern}' in DATASETS do not match ({error}).") from error
    shards = []
    for path in paths:
        found = sorted(glob.glob(path)) if glob.has_magic(path) and not is_remote(path) else [path]
        if not found:
            raise ValueError(f"No file fits {path} of 'shards:{pattern}' in DATASETS.")
        shards += found
    if not shards:
        raise ValueError(f"'shards:{pattern}' in DATASETS names no file: use the form {FORM}.")
    return list(dict.fromkeys(shards))


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _load_index(shard: str) -> ShardIndex:
    try:
        index = load_index(shard)
    except OSError as error:
        raise ValueError(
            f"The shard {shard} in DATASETS cannot be read ({error.strerror or error})."
        ) from error
    if index.problem:
        logger.warning(
            "The shard %s %s; the %d images before that are used. Copy or pack it again.",
            *(shard, index.problem, len(index.names)),
        )
    return index


def _register_shards(name: str, pattern: str) -> None:
    expand_pattern(pattern)
    DatasetCatalog.register(name, functools.partial(load_shards, pattern))
    MetadataCatalog.get(name).set(evaluator_type=QUERY_PATCH_EVALUATOR)


add_source("shards", form=FORM, register=_register_shards)
