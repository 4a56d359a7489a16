"""Smaller copies of image files, for disks and decoders: what is small enough stays as it is."""

import io
from typing import NamedTuple

from PIL import Image

from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.read_options import LARGEST_MAX_PIXELS, ReadOptions
from updetr_d2.data.transforms.resize import resize_uint8

# Gray values of more than 8 bits stay in their file: INPUT.GRAY_BITS says later how many of them are used.
_DEEP_MODES = ("I", "F")
_READ_OPTIONS = ReadOptions(max_pixels=LARGEST_MAX_PIXELS, read_gif=True)


class Shrunk(NamedTuple):
    """A smaller image.

    Attributes:
        content: a JPEG file.
        original_size: width and height (px) of the upright image before.
        size: and now.
    """

    content: bytes
    original_size: tuple[int, int]
    size: tuple[int, int]


def shrink(name: str, content: bytes, *, max_side: int, quality: int) -> Shrunk | None:
    """Resize an image whose longer side is too long.

    Args:
        name: of the file, for Detectron2's ``PathManager``.
        content: of the file.
        max_side: the longer side (px) afterwards.
        quality: of the JPEG file, 1 to 100.

    Returns:
        the upright image without metadata; None if it is small enough, or has deep gray values.

    Raises:
        UnusableImageError: if it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            longer_side, mode = max(image.size), image.mode
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnusableImageError(name, f"cannot be read ({type(error).__name__})") from error
    if longer_side <= max_side or mode.startswith(_DEEP_MODES):
        return None
    pixels = read_image_rgb(name, options=_READ_OPTIONS)
    height, width = pixels.shape[:2]
    scale = max_side / max(height, width)
    new_height, new_width = (max(1, round(scale * side)) for side in (height, width))
    encoded = io.BytesIO()
    smaller = Image.fromarray(resize_uint8(pixels, height=new_height, width=new_width))
    smaller.save(encoded, "JPEG", quality=quality)
    return Shrunk(encoded.getvalue(), (width, height), (new_width, new_height))
