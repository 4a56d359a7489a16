"""Data sets that need no code: names such as ``folder:/data/photos`` in ``DATASETS.TRAIN`` and ``DATASETS.TEST``."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from updetr_d2.data.cache import cache_folder

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def register_folder(name: str, folder: str) -> None:
    """Register the images of a folder tree, without labels, under ``name``."""
    DatasetCatalog.register(name, lambda: load_folder(folder))
    MetadataCatalog.get(name).set(evaluator_type="query_patch", image_root=folder)


# prefix -> (form of the name, function that registers it)
SOURCES: dict[str, tuple[str, Callable[[str, str], None]]] = {
    "folder": ("folder:DIRECTORY", register_folder),
}


def ensure_registered(names: Iterable[str]) -> None:
    """Register the data sets that are named by where they are.

    Args:
        names: data set names of a config; those that are registered already are left alone.

    Raises:
        ValueError: if a name is neither registered nor of a known form.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        prefix, separator, location = name.partition(":")
        if not separator or prefix not in SOURCES or not location:
            forms = ", ".join(form for form, _ in SOURCES.values())
            raise ValueError(
                f"DATASETS.TRAIN / DATASETS.TEST: there is no data set '{name}'; give the name of a registered "
                f"one or where it is ({forms})."
            )
        SOURCES[prefix][1](name, location)


def load_folder(folder: str) -> list[dict]:
    """All images below a folder, symbolic links followed, sorted by path.

    The list is kept in the cache folder and used again as long as no folder of the tree has changed.

    Args:
        folder: root of the tree.

    Returns:
        ``{"file_name", "image_id"}`` of each image; ``image_id`` is the path relative to ``folder``.

    Raises:
        ValueError: if the folder does not exist or holds no images.
    """
    root = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(root):
        raise ValueError(f"DATASETS: 'folder:{folder}' names a folder that does not exist.")
    paths = _read_index(root)
    if paths is None:
        paths, modified = scan_folder(root)
        _write_index(root, paths, modified)
        logger.info("Found %d images in %s", len(paths), root)
    if not paths:
        raise ValueError(
            f"DATASETS: 'folder:{folder}' holds no images; files with these endings are images: "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    return [{"file_name": os.path.join(root, path), "image_id": path} for path in paths]


def scan_folder(root: str) -> tuple[list[str], dict[str, int]]:
    """Walk a folder tree.

    Returns:
        sorted paths of the images relative to ``root``, and the modification time (ns) of every folder.
    """
    paths, modified, seen = [], {}, set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it, or a second way here
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        modified[relative] = status.st_mtime_ns
        prefix = "" if relative == "." else relative + os.sep
        paths.extend(prefix + file for file in files if file.lower().endswith(IMAGE_SUFFIXES))
    return sorted(paths), modified


def _index_path(root: str) -> Path:
    return cache_folder("folder_index") / f"{hashlib.sha256(root.encode()).hexdigest()[:24]}.json"


def _read_index(root: str) -> list[str] | None:
    """The cached list, or None if there is none, it is damaged or a folder has changed since."""
    try:
        index = json.loads(_index_path(root).read_text(encoding="utf-8"))
        for folder, modified in index["modified"].items():
            if os.stat(os.path.join(root, folder)).st_mtime_ns != modified:
                return None
        return index["paths"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_index(root: str, paths: list[str], modified: dict[str, int]) -> None:
    path = _index_path(root)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"paths": paths, "modified": modified}), encoding="utf-8")
    os.replace(temporary, path)


def _register_imagenet() -> None:
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for split in ("train", "val"):
        register_folder(f"imagenet_{split}_unlabeled", os.path.join(root, "imagenet", split))


_register_imagenet()
