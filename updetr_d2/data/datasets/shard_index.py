"""Where the images lie inside tar archives ("shards"): found once, kept on disk, read at any place.

With the byte range of every image, a shard is read in any order without unpacking it, so shards need no
loader of their own: an image of a shard is one read, like a file.
"""

import hashlib
import io
import logging
import os
import tarfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager

from updetr_d2.data.datasets.remote_files import is_remote, open_remote, read_range, remote_status
from updetr_d2.data.transforms.image_kinds import extensions
from updetr_d2.utils.cache import cache_folder
from updetr_d2.utils.files import replacing

logger = logging.getLogger(__name__)

PREFIX = "shard://"
# Added to the name of a shard, the file beside it that holds its index.
INDEX_SUFFIX = ".index.npz"
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


class ShardIndex(NamedTuple):
    """The images of one shard.

    Attributes:
        names: of the members that are images by extension, in the order of the archive.
        offsets: int64, where the bytes of each begin.
        sizes: int64, how many there are.
        problem: what is wrong with the archive's end, "" if nothing is.
    """

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    problem: str


def load_index(shard: str) -> ShardIndex:
    """Take the index of a shard from the file beside it or from the cache, or make it and keep it there.

    Args:
        shard: absolute path or URL of a tar archive that is not compressed.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is compressed or no tar archive.
    """
    size, version = _status(shard)
    # The index beside the shard is copied along with it, which may change the time of modification.
    cached = _cache_file(shard)
    index = _read(_index_beside(shard), [size, -1])
    if index is None or not _fits(shard, index):
        index = _read(cached, [size, version])
    if index is None:
        index = scan(shard)
        if cached is not None:
            _write(cached, index, [size, version])
    return index


def _status(shard: str) -> tuple[int, int]:
    """Size of a shard and a number that changes with it."""
    if is_remote(shard):
        return remote_status(shard)
    status = os.stat(shard)
    return status.st_size, status.st_mtime_ns


def _index_beside(shard: str) -> "Path | IO[bytes] | None":
    """The file with the index beside a shard; of a shard elsewhere its content, None without one."""
    if not is_remote(shard):
        return Path(shard + INDEX_SUFFIX)
    try:
        url = shard + INDEX_SUFFIX
        return io.BytesIO(read_range(url, 0, remote_status(url).size))
    except OSError:
        return None


def write_index_beside(shard: str) -> ShardIndex:
    """Make the index of a shard and write it into a file beside it."""
    index = scan(shard)
    _write(Path(shard + INDEX_SUFFIX), index, [os.stat(shard).st_size, -1])
    return index


def scan(shard: str) -> ShardIndex:
    """Find the images of a shard by reading the headers of its members, up to where it is damaged.

    Raises:
        OSError, ValueError: as :func:`load_index`.
    """
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    length, _ = _status(shard)
    with open_remote(shard, length) if is_remote(shard) else open(shard, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                problem = _scan_members(tar, file, length, names, offsets, sizes)
        except tarfile.TarError as error:
            file.seek(0)
            unpack = _COMPRESSED.get(file.read(2))
            if unpack is not None:
                raise ValueError(
                    f"The shard {shard} is compressed and cannot be read at any place: unpack it with "
                    f"`{unpack}` (images are compressed already) and name the .tar in DATASETS."
                ) from error
            raise ValueError(f"The shard {shard} is no tar archive ({error}): check DATASETS.") from error
    return ShardIndex(names, np.array(offsets, np.int64), np.array(sizes, np.int64), problem)


def _scan_members(
    tar: tarfile.TarFile,
    file: IO[bytes],
    length: int,
    names: list[str],
    offsets: list[int],
    sizes: list[int],
) -> str:
    try:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # not in its stubs; tarfile would keep all of them
            if member.offset_data + member.size > length:
                return f"ends inside of {member.name}"
            if member.isreg() and not member.issparse() and _is_image(member.name):
                names.append(member.name)
                offsets.append(member.offset_data)
                sizes.append(member.size)
    except tarfile.TarError as error:
        if not names:
            raise
        return f"is damaged at byte {tar.offset} ({error})"
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return "ends without the mark of a complete archive"
    return f"is damaged at byte {tar.offset}" if block.strip(b"\0") else ""


def _is_image(name: str) -> bool:
    base = os.path.basename(name)
    return base.lower().endswith(extensions()) and not base.startswith("._")  # "._x" are notes of macOS


def _cache_file(shard: str) -> Path | None:
    try:
        return cache_folder("shards") / f"{hashlib.sha1(os.fsencode(shard)).hexdigest()}.npz"
    except RuntimeError:
        return None


def _read(path: "Path | IO[bytes] | None", stamp: list[int]) -> ShardIndex | None:
    """Read an index; None if there is none, it is of another file, damaged, or not as :func:`scan` makes it."""
    if path is None or (isinstance(path, Path) and not path.is_file()):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["stamp"].tolist() != stamp:
                return None
            names = os.fsdecode(file["names"].tobytes()).split("\0") if file["names"].size else []
            index = ShardIndex(names, file["offsets"], file["sizes"], str(file["problem"]))
    except Exception:  # damaged archives raise errors of every kind
        return None
    return index if _is_sound(index, length=stamp[0]) else None


def _is_sound(index: ShardIndex, *, length: int) -> bool:
    """Whether every entry can be an image of an archive of ``length`` bytes: others may have written the index."""
    names, offsets, sizes, _ = index
    if not all(isinstance(each, np.ndarray) and each.dtype == np.int64 for each in (offsets, sizes)):
        return False
    if not offsets.shape == sizes.shape == (len(names),) or not all(map(_is_image, names)):
        return False
    in_order = np.all(offsets[1:] > offsets[:-1]) and np.all(offsets % tarfile.BLOCKSIZE == 0)
    inside = np.all(offsets >= tarfile.BLOCKSIZE) and np.all(sizes >= 0) and np.all(sizes <= length - offsets)
    return bool(in_order and inside)


def _fits(shard: str, index: ShardIndex) -> bool:
    """Whether the last image is where the index says."""
    try:
        return not index.names or _read_at(shard, int(index.offsets[-1]), int(index.sizes[-1])) is not None
    except OSError:
        return False


def _write(path: Path, index: ShardIndex, stamp: list[int]) -> None:
    """Write an index under a temporary name and rename it; without it the next start is slower."""
    content = io.BytesIO()
    np.savez(
        content,
        stamp=np.array(stamp, np.int64),
        names=np.frombuffer(os.fsencode("\0".join(index.names)), np.uint8),
        offsets=index.offsets,
        sizes=index.sizes,
        problem=np.array(index.problem),
    )
    try:
        with replacing(path) as file:
            file.write(content.getvalue())
    except OSError as error:
        logger.warning("The index %s is not kept, the next start will be slower: %s", path, error)


def member_url(shard: str, name: str, offset: int, size: int) -> str:
    """Name a member of a shard such that ``PathManager.open`` reads it: ``shard://TAR::MEMBER#OFFSET+SIZE``."""
    return f"{PREFIX}{shard}::{name}#{offset}+{size}"


def read_member(url: str) -> bytes:
    """Read what :func:`member_url` names.

    Raises:
        OSError: if the shard cannot be read or there is no member of this size at this place (any more).
    """
    location, _, byte_range = url.removeprefix(PREFIX).rpartition("#")
    shard, _, _ = location.partition("::")
    offset, size = (int(number) for number in byte_range.split("+"))
    return _read_at(shard, offset, size)


def _read_at(shard: str, offset: int, size: int) -> bytes:
    start, length = offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + size
    if is_remote(shard):
        block = read_range(shard, start, length)
    else:
        with open(shard, "rb", buffering=0) as file:
            block = os.pread(file.fileno(), length, start)
    # The header stands before the bytes: it tells when the shard was replaced after it was indexed.
    try:
        header = tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        header = None
    if header is None or header.size != size or len(block) != tarfile.BLOCKSIZE + size:
        raise OSError("the shard has changed since it was indexed; start again to index it anew")
    return block[tarfile.BLOCKSIZE :]


class ShardMemberHandler(PathHandler):
    """Lets ``PathManager.open`` read members of shards, see :func:`member_url`."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[bytes]:
        self._check_kwargs(kwargs)
        if mode != "rb":
            raise ValueError(f"Members of shards are opened with mode 'rb', not {mode!r}.")
        return io.BytesIO(read_member(path))


PathManager.register_handler(ShardMemberHandler())
