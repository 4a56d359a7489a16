"""Read any common image file as upright 8-bit RGB, or say in one exception class why it cannot be used."""

import contextlib
import io
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from updetr_d2.utils.files import refuse_special_file

# Formats that are decoded, whatever the extension says. Others of Pillow's stay closed on purpose: some
# start external programs (EPS) and none is used for photographs. JPEG includes the MPO files of phones.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_WHITE = (255, 255, 255, 255)


class UnusableImageError(Exception):
    """An image that cannot be used: unreadable, damaged or too small.

    Args:
        file_name: the file.
        reason: what is wrong with it, as part of a sentence.
    """

    def __init__(self, file_name: str, reason: str) -> None:
        super().__init__(file_name, reason)  # both arguments, so that the exception can be pickled
        self.file_name = file_name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file_name}: {self.reason}"


def read_image_rgb(file_name: str, *, min_side: int = 1) -> np.ndarray:
    """Read an image file as a human sees it.

    EXIF orientation is applied; transparent pixels are laid over white; CMYK and palettes are converted;
    16-bit values are scaled to 8 bits; of animations and multi-page files the first frame is taken.

    Args:
        file_name: local path, or a URL that Detectron2's ``PathManager`` understands.
        min_side: images with a shorter side (px) are refused (``INPUT.MIN_IMAGE_SIDE``).

    Returns:
        uint8 H×W×3, RGB, contiguous and writable.

    Raises:
        UnusableImageError: if the file cannot be read, is damaged, too small or a decompression bomb.
    """
    try:
        refuse_special_file(file_name)
        with PathManager.open(file_name, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UnusableImageError(file_name, f"cannot be read ({error.strerror or error})") from error
    if not content:
        raise UnusableImageError(file_name, "is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata; what matters here is whether the pixels arrive.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if min(image.size) >= min_side:
                return _decode(image, content)
            width, height = image.size
    except Image.UnidentifiedImageError as error:
        raise UnusableImageError(file_name, "is not an image of a known format") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnusableImageError(file_name, f"cannot be decoded ({type(error).__name__}: {error})") from error
    raise UnusableImageError(
        file_name, f"has {width}x{height} px, less than INPUT.MIN_IMAGE_SIDE = {min_side} on one side"
    )


def read_image_size(file_name: str) -> tuple[int, int]:
    """Width and height (px) of an upright image, from its header alone.

    Raises:
        UnusableImageError: if the file cannot be read or is no image.
    """
    try:
        refuse_special_file(file_name)
        with warnings.catch_warnings(), PathManager.open(file_name, "rb") as file:
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=_FORMATS)
            width, height = image.size
            orientation = _orientation(image)
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnusableImageError(file_name, f"cannot be read ({error})") from error
    return (height, width) if orientation >= 5 else (width, height)  # 5 to 8 are turned by 90 degrees


def to_tensor(image: np.ndarray, image_format: str) -> torch.Tensor:
    """Turn an RGB image H×W×3 into a contiguous tensor 3×H×W in ``image_format``, "RGB" or "BGR"."""
    return stack_to_tensor([image], image_format)[0]


def stack_to_tensor(images: Sequence[np.ndarray] | np.ndarray, image_format: str) -> torch.Tensor:
    """Turn RGB images into one contiguous tensor.

    Args:
        images: B times H×W×3 of the same size, uint8 or float; not changed.
        image_format: channel order of the result, "RGB" or "BGR".

    Returns:
        B×3×H×W of the same type.
    """
    planes = np.empty((len(images), 3, *images[0].shape[:2]), images[0].dtype)
    for image, target in zip(images, planes):
        # OpenCV parts the channels many times as fast as NumPy copies with another order of axes.
        cv2.split(image, list(target[::-1] if image_format == "BGR" else target))
    return torch.from_numpy(planes)


def _decode(image: Image.Image, content: bytes) -> np.ndarray:
    """Turn an opened image into upright uint8 H×W×3 RGB; ``content`` is its file."""
    if image.format == "JPEG" and image.mode == "RGB" and _orientation(image) == 1:
        # The same library and pixels as Pillow's without its detour over four bytes a pixel: 1.5 times as fast.
        # Whatever it refuses gets its chance, or its error message, from Pillow.
        with contextlib.suppress(RuntimeError):
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    image.load()
    with contextlib.suppress(Exception):  # broken EXIF data count as none
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        gray = _to_8_bits(np.asarray(image), is_16_bit=image.mode != "F" and _is_16_bit(image))
        return np.repeat(gray[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 if there is none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data count as none
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow before 11 opens 16-bit greyscale PNG files in the 32-bit mode "I".
    return image.mode.startswith("I;16") or image.format in ("PNG", "PPM")


def _to_8_bits(values: np.ndarray, *, is_16_bit: bool) -> np.ndarray:
    """Scale greyscale values to uint8: 0–65535 linearly, 32-bit values, which have no norm, by their range."""
    values = values.astype(np.float64)
    if is_16_bit:
        low, high = 0.0, 65535.0
    else:
        finite = values[np.isfinite(values)]
        low = float(finite.min()) if finite.size else 0.0
        high = float(finite.max()) if finite.size else 1.0
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled = (values - low) * (255.0 / max(high - low, float(np.finfo(np.float64).tiny)))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
