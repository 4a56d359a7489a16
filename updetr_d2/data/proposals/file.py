"""The boxes of all images of a data set in one file: what ``updetr proposals`` writes and pre-training reads.

Boxes are fractions of their image as 16-bit numbers, 12 bytes a box with its score; an image is found by a 64-bit
digest of its ``image_id``. Loader processes share one copy in memory.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from updetr_d2.utils.arrays import map_arrays, write_arrays

VERSION = 2
# What a side of an image counts in boxes.
UNITS = 65535

_TYPES = {
    "version": (np.int64, 0),
    "source": (np.str_, 0),
    "num_clusters": (np.int64, 0),
    "keys": (np.uint64, 1),
    "sizes": (np.int32, 2),
    "file_sizes": (np.int64, 1),
    "ends": (np.int64, 1),
    "boxes": (np.uint16, 2),
    "scores": (np.float32, 1),
    "clusters": (np.int32, 1),
}


@dataclass
class ImageProposals:
    """Boxes of one image, the best first.

    Attributes:
        size: (width, height) of the image in px.
        file_size: bytes of the image's file; 0 if that is not known.
        boxes: float64 ``[N, 4]``, XYXY in px.
        scores: float32 ``[N]``, higher is better; comparable within the image.
        clusters: int64 ``[N]``, or None.
    """

    size: tuple[int, int]
    file_size: int
    boxes: np.ndarray
    scores: np.ndarray
    clusters: np.ndarray | None = None


@dataclass
class Proposals:
    """Boxes of many images.

    Attributes:
        source: where the boxes come from, for people.
        keys: uint64 ``[I]``, ascending, :func:`image_key` of each image.
        sizes: int32 ``[I, 2]``, (width, height) px.
        file_sizes: int64 ``[I]``, bytes of each image's file; 0 where it is in a shard.
        ends: int64 ``[I]``, where the boxes of each image end.
        boxes: uint16 ``[B, 4]``, XYXY in ``1 / UNITS`` of width and height.
        scores: float32 ``[B]``.
        num_clusters: K, 0 without clusters.
        clusters: int32 ``[B]`` in [0, K); empty without.
    """

    source: str
    keys: np.ndarray
    sizes: np.ndarray
    file_sizes: np.ndarray
    ends: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    num_clusters: int = 0
    clusters: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, image_id: object) -> ImageProposals | None:
        """The boxes of an image, None if the file does not know it."""
        key = image_key(image_id)
        index = int(np.searchsorted(self.keys, key))
        if index == len(self.keys) or self.keys[index] != key:
            return None
        begin, end = (int(self.ends[index - 1]) if index else 0), int(self.ends[index])
        width, height = self.sizes[index].tolist()
        return ImageProposals(
            size=(width, height),
            file_size=int(self.file_sizes[index]),
            boxes=self.boxes[begin:end] * (np.array([width, height, width, height]) / UNITS),
            scores=np.array(self.scores[begin:end]),
            clusters=np.array(self.clusters[begin:end], np.int64) if self.num_clusters else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_arrays(
            path,
            {
                "version": np.array(VERSION, np.int64),
                "source": np.array(self.source),
                "num_clusters": np.array(self.num_clusters, np.int64),
                "keys": self.keys,
                "sizes": self.sizes,
                "file_sizes": self.file_sizes,
                "ends": self.ends,
                "boxes": self.boxes,
                "scores": self.scores,
                "clusters": self.clusters,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Proposals":
        """Read and check a file.

        Raises:
            ValueError: if there is no such file or anything in it is not as :meth:`save` writes it.
        """
        path = os.path.expanduser(os.fspath(path))
        try:
            arrays = map_arrays(path)
            _check(arrays)
        except OSError as error:
            raise ValueError(
                f"The proposals {path} cannot be read ({error.strerror or error}): check INPUT.PROPOSALS.FILE."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{path} is no file of `updetr proposals` that can be used ({error}): make it again."
            ) from error
        arrays.pop("version")
        source, num_clusters = str(arrays.pop("source")), int(arrays.pop("num_clusters"))
        return cls(source=source, num_clusters=num_clusters, **arrays)


def image_key(image_id: object) -> np.uint64:
    """64-bit digest of an ``image_id`` of Detectron2's dataset dicts, a number or a name."""
    name = os.fsencode(str(image_id))
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))


def image_id_of(dataset_dict: dict) -> object:
    """What tells an image from all others of its data set: ``image_id``, or the file's name without it."""
    return dataset_dict.get("image_id", dataset_dict["file_name"])


def to_units(boxes: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """XYXY boxes ``[N, 4]`` in px -> uint16 fractions of the image, at least one unit wide and high."""
    scaled = boxes / np.array([width, height, width, height]) * UNITS
    units = np.clip(np.rint(scaled), 0, UNITS).astype(np.int64)
    units[:, :2] = np.minimum(units[:, :2], UNITS - 1)
    units[:, 2:] = np.maximum(units[:, 2:], units[:, :2] + 1)
    return units.astype(np.uint16)


def _check(arrays: dict[str, np.ndarray]) -> None:
    if arrays.get("version", VERSION) != VERSION:
        raise ValueError(f"it is of version {arrays['version']}, this program reads {VERSION}")
    if set(arrays) != set(_TYPES):
        raise ValueError(f"it has the parts {sorted(arrays)}")
    for name, (kind, num_dims) in _TYPES.items():
        array = arrays[name]
        if not np.issubdtype(array.dtype, kind) or array.ndim != num_dims:
            raise ValueError(f"'{name}' is {array.dtype} of {array.ndim} dimensions")
    keys, ends, boxes, clusters = (arrays[name] for name in ("keys", "ends", "boxes", "clusters"))
    num_images, num_boxes, num_clusters = len(keys), len(boxes), int(arrays["num_clusters"])
    consistent = {
        "keys": bool((keys[1:] > keys[:-1]).all()),
        "sizes": arrays["sizes"].shape == (num_images, 2) and bool((arrays["sizes"] > 0).all()),
        "file_sizes": arrays["file_sizes"].shape == (num_images,),
        "ends": ends.shape == (num_images,)
        and bool((np.diff(ends, prepend=0) >= 0).all())
        and (int(ends[-1]) if num_images else 0) == num_boxes,
        "boxes": boxes.shape[1] == 4 and bool((boxes[:, 2:] > boxes[:, :2]).all()),
        "scores": len(arrays["scores"]) == num_boxes and bool(np.isfinite(arrays["scores"]).all()),
        "clusters": num_clusters >= 0
        and len(clusters) == (num_boxes if num_clusters else 0)
        and bool(((clusters >= 0) & (clusters < max(num_clusters, 1))).all()),
    }
    for name, holds in consistent.items():
        if not holds:
            raise ValueError(f"the numbers in '{name}' do not fit")
