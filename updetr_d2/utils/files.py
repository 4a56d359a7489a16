"""Write files whole or not at all: whoever reads a path finds the old content or the new one.

Files of others are opened only if they are regular: a pipe would wait for ever, /dev/zero never end.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` once it is written and on the disk.

    Processes of several machines may do so at once; a process that is killed leaves a file beside ``path`` whose
    name ends with that of ``path`` and ``.tmp``.

    Args:
        path: of the file; as long as the context is open, or if it ends with an error, it is as before.
    """
    path = Path(path)
    suffix = f".{path.name[-100:]}{TEMPORARY_SUFFIX}"  # names have an end at 255 bytes
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=suffix, delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are the user's alone, caches and runs may be shared
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    _sync_folder(path.parent)


def file_size(path: str | Path) -> int | None:
    """Bytes of a file; None for what is no file, such as an image in a shard."""
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return None


def printable(name: object) -> str:
    """A file name that any log can hold: bytes that are not UTF-8 as ``\\xe9``."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def refuse_special_file(path: str | Path) -> None:
    """Make sure that reading a path comes to an end.

    Args:
        path: of a file; if there is none, whoever opens it says so.

    Raises:
        OSError: if it is a pipe, a socket, a device or a folder.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file but a pipe, a device or a folder", str(path))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, in UTF-8, by :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk. Some network file systems cannot do it, and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
