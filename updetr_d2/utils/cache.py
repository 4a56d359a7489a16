"""Where updetr_d2 keeps files that it can make again: indices of image folders, rendered scenes."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from updetr_d2.utils.files import replacing

logger = logging.getLogger(__name__)

# Names have an end at 255 bytes, digest and suffixes included.
_MAX_STEM_BYTES = 100
CACHE_VARIABLE = "UPDETR_D2_CACHE"


def cache_root() -> Path:
    """Return the cache folder, ``$UPDETR_D2_CACHE`` or ``~/.cache/updetr_d2``, without creating it."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/updetr_d2").expanduser().absolute()


def cache_folder(*parts: str) -> Path:
    """Return a folder inside the cache and create it if it is missing.

    Args:
        *parts: names of the nested folders below the cache folder; none returns the cache folder itself.

    Returns:
        The absolute path of the existing folder.

    Raises:
        RuntimeError: if the folder cannot be created.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(
            f"Cannot create the cache folder {folder} ({error.strerror}): "
            f"set ${CACHE_VARIABLE} to a folder that can be written."
        ) from error
    return folder


def short_name(stem: str, suffix: str) -> str:
    """A file name that fits every file system: of a long stem the beginning is taken.

    Args:
        stem: may be as long as names can be.
        suffix: what tells the file from others, such as a digest.
    """
    return os.fsdecode(os.fsencode(stem)[:_MAX_STEM_BYTES]) + suffix


def keep_copy(path: str | Path, *folders: str) -> str:
    """Keep a copy of a file in the cache, so that readers see the same content however long a run takes.

    Args:
        path: the file.
        *folders: names of the nested folders below the cache folder for the copy, whose name is that of the
            file with a digest of its content.

    Returns:
        the copy's path; that of the file itself, with a warning, if the cache cannot be written.
    """
    path = Path(path)
    try:
        digest = hashlib.sha256(path.read_bytes())
        copy = cache_folder(*folders) / short_name(
            path.stem, f"-{digest.hexdigest()[:24]}{path.suffix[-20:]}"
        )
        if not copy.exists():
            with open(path, "rb") as original, replacing(copy) as file:
                shutil.copyfileobj(original, file)
    except (OSError, RuntimeError) as error:
        logger.warning("%s is read where it is: do not change it during the run (%s).", path, error)
        return str(path)
    return str(copy)
