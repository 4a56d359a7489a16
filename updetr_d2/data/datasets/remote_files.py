"""Parts of files on web servers (``http(s)://``) and in object stores (``s3://``, ``gs://``, ...), read by range.

Web servers need nothing but Python; stores go through fsspec (``pip install updetr_d2[stores]``). Errors are those
of the operating system, so that reading is tried again as it is for files.
"""

import errno
import hashlib
import http.client
import io
import urllib.error
import urllib.request
from typing import Any, NamedTuple

# Seconds without an answer.
_TIMEOUT = 60.0
# Bytes read at once where a file is read from one end to the other.
_BLOCK = 2**22
_NUMBER_OF_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}


class RemoteStatus(NamedTuple):
    """Size of a file (bytes) and a number that changes with its content, as far as the server tells."""

    size: int
    version: int


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def remote_status(url: str) -> RemoteStatus:
    """
    Raises:
        OSError: if the server does not tell, or there is no such file.
    """
    if not _is_web(url):
        information = _ask_store(url, "info")
        marks = [
            str(information.get(key, "")) for key in ("ETag", "etag", "mtime", "LastModified", "updated")
        ]
        return RemoteStatus(int(information["size"]), _number("".join(marks)))
    with _ask_web(url, method="HEAD") as response:
        length = response.headers.get("Content-Length")
        marks = [response.headers.get(key) or "" for key in ("ETag", "Last-Modified")]
    if length is None:
        raise OSError(errno.EOPNOTSUPP, "the server does not tell the size", url)
    return RemoteStatus(int(length), _number("".join(marks)))


def read_range(url: str, start: int, size: int) -> bytes:
    """The bytes from ``start`` on; fewer at the end of the file.

    Raises:
        OSError: if they cannot be read, or the server gives whole files only.
    """
    if size <= 0:
        return b""
    if not _is_web(url):
        return _ask_store(url, "cat_file", start=start, end=start + size)
    try:
        with _ask_web(url, headers={"Range": f"bytes={start}-{start + size - 1}"}) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                raise OSError(errno.EOPNOTSUPP, "the server gives no parts of files (Range)", url)
            return response.read()
    except (http.client.HTTPException, TimeoutError) as error:  # while the bytes come
        raise OSError(errno.EIO, f"the connection broke ({error})", url) from error


def open_remote(url: str, size: int) -> io.BufferedReader:
    """A file to read anywhere, in large blocks.

    Args:
        url: of the file.
        size: its length, see :func:`remote_status`.
    """
    return io.BufferedReader(_RemoteFile(url, size), _BLOCK)


class _RemoteFile(io.RawIOBase):
    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, target: Any) -> int:
        wanted = min(len(target), self._size - self._position)
        content = read_range(self._url, self._position, wanted)
        target[: len(content)] = content
        self._position += len(content)
        return len(content)


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _ask_web(url: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        number = _NUMBER_OF_STATUS.get(error.code, errno.EIO)
        raise OSError(number, f"the server answers {error.code} {error.reason}", url) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        raise OSError(errno.EIO, f"the server does not answer ({error})", url) from error


def _ask_store(url: str, method: str, **arguments: int) -> Any:
    try:
        import fsspec
    except ImportError:
        raise ValueError(
            f"{url} in DATASETS needs the fsspec package: pip install updetr_d2[stores]."
        ) from None
    try:
        system, path = fsspec.core.url_to_fs(url)
        return getattr(system, method)(path, **arguments)
    except ImportError as error:  # of the package for this kind of store
        raise ValueError(f"{url} in DATASETS: {error}.") from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), url) from error


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:7], "big")
