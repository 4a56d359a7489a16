"""All images below a folder as a data set that stays small in memory, with an index kept on disk."""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset

from updetr_d2.data.datasets.packed_names import PackedNames
from updetr_d2.data.transforms.image_kinds import extensions, not_read
from updetr_d2.utils.cache import cache_folder
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)

# A folder changed this shortly (ns) before it was read may change again within the clock tick of its file
# system without a new modification time, so its entry is not trusted the next time.
_MTIME_MARGIN = 2_000_000_000

# What is known of one folder: modification time (ns), names of the subfolders, names of the images, those
# that only a plugin reads among them, and the number of other files by extension.
_Entry = tuple[int, list[str], list[str], dict[str, int]]


class ImageFolder(Dataset):
    """Detectron2 dataset dicts ``{"file_name", "image_id"}`` of the images of a folder tree.

    Args:
        root: the folder.
        relative_names: paths of the images below it; they are the ``image_id``, so that these stay the same
            when images are added or the folder moves.
    """

    def __init__(self, root: str, relative_names: list[str]) -> None:
        self.root = root
        self._names = PackedNames(relative_names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, str]:
        name = self._names[index]
        return {"file_name": os.path.join(self.root, name), "image_id": name}

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (self[i] for i in range(len(self)))


def load_image_folder(root: str) -> ImageFolder:
    """List the images below a folder, from the cached index where the folders have not changed.

    Images are JPEG, PNG, WebP, BMP, TIFF and AVIF files by extension, HEIC and JPEG XL where Pillow has the
    plugin; the log counts all others. Symbolic links are followed; a folder that is reached twice, as in a
    cycle of links, counts once.

    Args:
        root: the folder; ``~`` is expanded.

    Returns:
        The images in an order that depends on their names alone.

    Raises:
        ValueError: if the folder does not exist or has no images.
    """
    root = existing_folder(root)
    started = time.perf_counter()
    known = _read_index(root)
    tree = _scan(root, known)
    readable = extensions()
    names = [
        os.path.join(folder, image) if folder else image
        for folder, (_, _, images, _) in tree.items()
        for image in images
        if image.lower().endswith(readable)
    ]
    images, others = not_read(_other_files(tree, readable))
    if not names:
        found = f", but {images or others}" if images or others else ""
        raise ValueError(
            f"The folder {root} has no images ({', '.join(readable)}){found}: check the path in DATASETS."
        )
    if tree != known:
        _write_index(root, tree)
    logger.info(
        "Found %d images in %d folders below %s in %.1f s",
        *(len(names), len(tree), root, time.perf_counter() - started),
    )
    if images:
        logger.warning("Files below %s that are not read: %s", root, images)
    if others:
        logger.info("Other files below %s: %s", root, others)
    return ImageFolder(root, names)


def existing_folder(root: str) -> str:
    """Return the absolute path of a folder, or raise ValueError if there is none."""
    path = os.path.abspath(os.path.expanduser(root))
    if not root or not os.path.isdir(path):
        raise ValueError(f"The image folder {root!r} does not exist: check the path in DATASETS.")
    return path


def _scan(root: str, known: dict[str, _Entry]) -> dict[str, _Entry]:
    """Walk the tree in sorted order; folders with an unchanged modification time are taken from ``known``."""
    tree: dict[str, _Entry] = {}
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entry = known.get(folder)
            if entry is None or entry[0] != status.st_mtime_ns:
                entry = _list_folder(path, status.st_mtime_ns)
        except OSError as error:
            logger.warning("Left out the folder %s: %s", path, error.strerror or error)
            continue
        tree[folder] = entry
        pending.extend(os.path.join(folder, name) for name in reversed(entry[1]))
    return tree


def _list_folder(path: str, mtime: int) -> _Entry:
    folders, images = [], []
    others: Counter[str] = Counter()
    endings = extensions(optional=True)
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name.lower()
            if entry.is_dir():
                folders.append(entry.name)
            elif name.endswith(endings) and entry.is_file():
                images.append(entry.name)
            elif not name.startswith("."):
                others[os.path.splitext(name)[1]] += 1
    if time.time_ns() - mtime < _MTIME_MARGIN:
        mtime = -1
    return mtime, sorted(folders), sorted(images), dict(others)


def _other_files(tree: dict[str, _Entry], readable: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Extensions of the files that are not read and how many there are, again and again."""
    for _, _, images, others in tree.values():
        yield from others.items()
        yield from (
            (os.path.splitext(name.lower())[1], 1) for name in images if not name.lower().endswith(readable)
        )


def _index_file(root: str) -> Path:
    return cache_folder("folders") / f"{hashlib.sha1(os.fsencode(root)).hexdigest()}.json"


def _read_index(root: str) -> dict[str, _Entry]:
    try:
        index = json.loads(_index_file(root).read_text(encoding="ascii"))
        folders = {folder: tuple(entry) for folder, entry in index["folders"].items()}
        return folders if index["root"] == root and all(map(_is_entry, folders.values())) else {}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none yet, or damaged: the folders are read instead


def _is_entry(entry: tuple) -> bool:
    """Whether what was read has the form of an :data:`_Entry` and names nothing outside of its folder."""
    if (
        len(entry) != 4
        or not isinstance(entry[0], int)
        or not all(isinstance(each, list) for each in entry[1:3])
        or not isinstance(entry[3], dict)
        or not all(isinstance(count, int) for count in entry[3].values())
    ):
        return False
    names = (*entry[1], *entry[2])
    return all(isinstance(name, str) and name not in ("", ".", "..") and "/" not in name for name in names)


def _write_index(root: str, tree: dict[str, _Entry]) -> None:
    """Write the index under a temporary name and rename it, so that other processes see it whole."""
    try:
        write_text(_index_file(root), json.dumps({"root": root, "folders": tree}, separators=(",", ":")))
    except (OSError, RuntimeError) as error:
        logger.warning("The index of %s is not kept, the next start will be slower: %s", root, error)
