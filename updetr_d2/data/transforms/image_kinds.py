"""Kinds of image files: those that are always read, and those that Pillow reads where a plugin is installed.

Others of Pillow's stay closed on purpose: some start external programs (EPS) and none is used for photographs.
"""

import contextlib
import functools
import importlib
from collections import Counter
from collections.abc import Iterable

from PIL import Image

__all__ = ["extensions", "formats", "not_read"]

# Pillow's names; JPEG includes the MPO files of phones.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Format, extensions, the module of a plugin, and how to get it.
_OPTIONAL = (
    ("AVIF", (".avif",), None, "Pillow 11.3 or newer reads them"),
    ("HEIF", (".heic", ".heif", ".hif"), "pillow_heif", "pip install pillow-heif reads them"),
    ("JXL", (".jxl",), "pillow_jxl", "pip install pillow-jxl-plugin reads them"),
)
# Files that a person would take for images, beside those of plugins.
_OTHER_IMAGES = (
    *(".gif", ".jp2", ".j2k", ".svg", ".psd", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
    *(".raf", ".raw", ".dcm", ".npy", ".exr", ".hdr", ".mp4", ".mov", ".avi", ".mkv", ".webm"),
)


@functools.cache
def _optional() -> dict[str, tuple[str, ...]]:
    """Extensions of the optional formats that can be read here, by format."""
    for name, _, module, _ in _OPTIONAL:
        if module is None:
            continue
        with contextlib.suppress(Exception):  # missing, or made for another Pillow
            plugin = importlib.import_module(module)
            if name == "HEIF":
                plugin.register_heif_opener()
    Image.init()
    return {name: endings for name, endings, _, _ in _OPTIONAL if name in Image.OPEN}


def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded, whatever the extension of a file says."""
    return (*_FORMATS, *_optional())


def extensions(*, optional: bool = False) -> tuple[str, ...]:
    """Lower-case extensions of the files that are images.

    Args:
        optional: those that can't be read here for lack of a plugin, too.
    """
    endings = (each for _, each, _, _ in _OPTIONAL) if optional else _optional().values()
    return (*_EXTENSIONS, *(ending for each in endings for ending in each))


def not_read(counts: Iterable[tuple[str, int]]) -> tuple[str, str]:
    """Say how many files of which kinds are not read.

    Args:
        counts: extension, in lower case with its dot or "", and number of files that have it; may come again.

    Returns:
        those that look like images or videos, with what would read them, and all others; each as a part of a
        sentence, "" if there are none.
    """
    total: Counter[str] = Counter()
    for extension, count in counts:
        total[extension] += count
    ways = {ending: way for _, endings, _, way in _OPTIONAL for ending in endings}
    images: list[str] = []
    others: list[str] = []
    for extension, count in total.most_common():
        said = f"{count} {extension or 'without an extension'}"
        if extension in ways:
            images.append(f"{said} ({ways[extension]})")
        else:
            (images if extension in _OTHER_IMAGES else others).append(said)
    return ", ".join(images), ", ".join(others)
