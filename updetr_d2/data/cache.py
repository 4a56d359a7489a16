"""Where updetr_d2 keeps files that it can make again: indices of image folders, rendered scenes."""

import os
from pathlib import Path

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


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file in one piece; several processes may write the same one."""
    temporary = Path(path).with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
