"""Several NumPy arrays in one file (uncompressed .npz) that processes map into memory instead of each reading it.

Nothing of a file is executed: arrays of Python objects, which would be pickled, are neither written nor read.
"""

import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from updetr_d2.utils.files import refuse_special_file, replacing

# The fixed part of a member's header in a zip archive: the lengths of name and extra field are its last numbers.
_LOCAL_HEADER = struct.Struct("<26x2H")


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name, whole or not at all.

    Args:
        path: of the file, with any suffix.
        arrays: of numbers or texts.

    Raises:
        ValueError: for an array of Python objects.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"The array '{name}' holds Python objects; only numbers and texts are written.")
    ordered: dict[str, Any] = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with replacing(path) as file:
        np.savez(file, **ordered)


def map_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Check a file of :func:`write_arrays` to its last byte and map its arrays into memory.

    Args:
        path: of the file, which must not be changed in place while the arrays are used (writing it anew by
            :func:`write_arrays` leaves them as they are).

    Returns:
        read-only arrays by name.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, or not what :func:`write_arrays` writes.
    """
    refuse_special_file(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"its part {damaged} is damaged")
            return {info.filename.removesuffix(".npy"): _map(file, info) for info in archive.infolist()}
    except (zipfile.BadZipFile, struct.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is damaged or of another kind ({error})") from error


def _map(file: IO[bytes], info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
        raise ValueError(f"its part {info.filename} is no uncompressed array")
    file.seek(info.header_offset)
    name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    begin = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    file.seek(begin)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    read_header = readers.get(np.lib.format.read_magic(file))
    if read_header is None:
        raise ValueError(f"its part {info.filename} is of a later version of NumPy's format")
    shape, in_fortran_order, dtype = read_header(file)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject or in_fortran_order or file.tell() - begin + size != info.file_size:
        raise ValueError(f"its part {info.filename} is no plain array")
    if size == 0:
        return np.empty(shape, dtype)
    return np.memmap(os.fspath(file.name), dtype, "r", file.tell(), shape)
