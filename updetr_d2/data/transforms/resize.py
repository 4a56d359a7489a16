"""Resizing of images: DETR's rule for the size, and a fast antialiased resize of 8-bit images."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image
from torch.nn import functional

# What decides on the scale of images that share it; None where each has its own.
_scale_key: ContextVar[tuple[int, ...] | None] = ContextVar("scale_key", default=None)


@contextlib.contextmanager
def shared_scale(*key: int) -> Iterator[None]:
    """Let :class:`DETRResize` draw the same length in all contexts of the same ``key``."""
    token = _scale_key.set(key)
    try:
        yield
    finally:
        _scale_key.reset(token)


def resize_uint8(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Resize with bilinear interpolation and antialiasing, within one gray level of Pillow's result.

    PyTorch's kernel is several times as fast as Pillow's for the same filter.

    Args:
        image: uint8 H×W×C, also a part of a larger image.
        height, width: size (px) of the result.

    Returns:
        uint8 ``height``×``width``×C, contiguous unless it is ``image`` itself.
    """
    if image.shape[:2] == (height, width):
        return image
    # The kernel reads and writes pixels of adjacent channels as they are if their rows are adjacent, too.
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def detr_resized_shape(height: int, width: int, *, short_side: int, max_size: int) -> tuple[int, int]:
    """Return the size of a resized image by DETR's rule.

    Detectron2's ``ResizeShortestEdge`` rounds the long side to the nearest integer and keeps it at
    ``max_size`` where it is limited. DETR reduces the short side to the integer nearest to what the limit
    allows and derives the long side from it, rounded down.

    Args:
        height, width: size (px) of the image.
        short_side: wanted short side (px).
        max_size: limit (px) of the long side.

    Returns:
        ``(height, width)`` in px, both at least 1 and at most ``max_size``.
    """
    short, long = min(height, width), max(height, width)
    if long / short * short_side > max_size:
        short_side = max(1, round(max_size * short / long))
    # Rounding the short side up can carry the long side past the limit by some pixels.
    long_side = min(int(short_side * long / short), max_size)
    return (short_side, long_side) if height <= width else (long_side, short_side)


class AntialiasResizeTransform(T.ResizeTransform):
    """Detectron2's ``ResizeTransform`` with :func:`resize_uint8` for 8-bit images; coordinates may be integers."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if interp is None and img.dtype == np.uint8 and img.ndim == 3:
            return resize_uint8(img, height=self.new_h, width=self.new_w)
        return super().apply_image(img, interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        # Detectron2 scales in place, which would cut the results of integer coordinates down to integers.
        return super().apply_coords(coords.astype(np.result_type(coords, np.float32)))


class DETRResize(T.Augmentation):
    """Resize the short side to a random choice of lengths, by DETR's rule (:func:`detr_resized_shape`).

    Args:
        short_sides: lengths (px), one of which is drawn with equal probabilities.
        max_size: limit (px) of the long side.
        key: config key of the short sides, for messages; that of the limit has MAX for MIN.
        can_share: follow :func:`shared_scale`.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_size: int,
        *,
        key: str = "INPUT.MIN_SIZE_TRAIN",
        can_share: bool = False,
    ) -> None:
        super().__init__()
        if not short_sides or min(short_sides) < 1:
            raise ValueError(f"{key} is {tuple(short_sides)}; it must be positive lengths in px.")
        if max_size < 1:
            raise ValueError(
                f"{key.replace('MIN', 'MAX')} is {max_size}; it must be a positive length in px."
            )
        self.short_sides = tuple(short_sides)
        self.max_size = max_size
        self.can_share = can_share

    @classmethod
    def from_config(cls, cfg: CfgNode, *, is_train: bool) -> "DETRResize":
        """The resize of ``INPUT.{MIN_SIZE_TRAIN, MAX_SIZE_TRAIN}``, or of ``_TEST`` for inference.

        Raises:
            ValueError: if a value cannot be used, naming the key.
        """
        if not is_train:
            return cls((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, key="INPUT.MIN_SIZE_TEST")
        if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING != "choice":
            raise ValueError(
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING is '{cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING}'; use 'choice'."
            )
        return cls(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, can_share=True)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        key = _scale_key.get() if self.can_share else None
        choose = np.random.choice if key is None else np.random.default_rng(key).choice
        short_side = int(choose(self.short_sides))
        new_h, new_w = detr_resized_shape(height, width, short_side=short_side, max_size=self.max_size)
        return AntialiasResizeTransform(height, width, new_h, new_w, Image.Resampling.BILINEAR)
