"""Read any common image file as upright 8-bit RGB, or say in one exception class why it cannot be used."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import ExifTags, Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from updetr_d2.data.transforms.image_kinds import formats
from updetr_d2.data.transforms.read_options import DecodingTimeoutError, ReadOptions, time_limit
from updetr_d2.utils.files import refuse_special_file

_GIF_STARTS = (b"GIF87a", b"GIF89a")
# No image of sense has more bytes for each pixel than RGBA of 16 bits without compression.
_MAX_BYTES_PER_PIXEL = 8
# Progressive JPEGs come in about ten scans; each one more costs another pass over all pixels, in a few bytes.
_MAX_JPEG_SCANS = 100
_START_OF_SCAN = b"\xff\xda"
_DEFAULT_OPTIONS = ReadOptions()
# Pixels that are converted at once where that needs eight bytes for each.
_PIXELS_AT_ONCE = 1 << 20
_WHITE = (255, 255, 255, 255)

logger = logging.getLogger(__name__)


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


def read_image_rgb(
    file_name: str, *, min_side: int = 1, options: ReadOptions = _DEFAULT_OPTIONS
) -> np.ndarray:
    """Read an image file as a human sees it.

    EXIF orientation is applied; transparent pixels are laid over white; CMYK and palettes are converted;
    16-bit values are scaled to 8 bits; of animations and multi-page files the first frame is taken.

    Args:
        file_name: local path, or a URL that Detectron2's ``PathManager`` understands.
        min_side: images with a shorter side (px) are refused (``INPUT.MIN_IMAGE_SIDE``).
        options: what the file may cost, and how odd kinds are read.

    Returns:
        uint8 H×W×3, RGB, contiguous and writable.

    Raises:
        UnusableImageError: if the file cannot be read, is damaged, too small or costs too much.
    """
    return read_reduced_rgb(file_name, min_side=min_side, options=options)[0]


def read_reduced_rgb(
    file_name: str,
    *,
    min_side: int = 1,
    options: ReadOptions = _DEFAULT_OPTIONS,
    draft_side: int | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image that will be resized to less than half: :func:`read_image_rgb` with a short cut for JPEGs.

    Args:
        file_name, min_side, options: as for :func:`read_image_rgb`.
        draft_side: JPEGs are decoded at 1/2, 1/4 or 1/8 of their sides (libjpeg's scaled decoding), the least
            whose short side (px) is as long; None decodes all at full size.

    Returns:
        the image, and the height and width (px) that it has at full size.

    Raises:
        UnusableImageError: as :func:`read_image_rgb`.
    """
    content = _read_file(file_name, options)
    try:
        with warnings.catch_warnings(), time_limit(options.time_limit):
            # Pillow warns of odd metadata; what matters here is whether the pixels arrive.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_formats(options))
            refused = _refusal(image, content, min_side=min_side, options=options)
            if refused is None:
                return _decode(image, content, file_name=file_name, options=options, draft_side=draft_side)
    except Image.UnidentifiedImageError as error:
        raise UnusableImageError(file_name, "is not an image of a known format") from error
    except DecodingTimeoutError as error:
        raise UnusableImageError(file_name, str(error)) from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnusableImageError(file_name, f"cannot be decoded ({type(error).__name__}: {error})") from error
    raise UnusableImageError(file_name, refused)


def read_image_size(file_name: str, *, options: ReadOptions = _DEFAULT_OPTIONS) -> tuple[int, int]:
    """Width and height (px) of an upright image, from its header alone.

    Raises:
        UnusableImageError: if the file cannot be read, or is no image of those that ``options`` allow.
    """
    try:
        refuse_special_file(file_name)
        with (
            warnings.catch_warnings(),
            PathManager.open(file_name, "rb") as file,
            time_limit(options.time_limit),
        ):
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=_formats(options))
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


def _read_file(file_name: str, options: ReadOptions) -> bytes:
    """The bytes of an image file, if it is one that may be read."""
    try:
        refuse_special_file(file_name)
        with PathManager.open(file_name, "rb") as file:
            num_bytes = file.seek(0, io.SEEK_END)
            if num_bytes <= _MAX_BYTES_PER_PIXEL * options.max_pixels:
                file.seek(0)
                content = file.read()
    except OSError as error:
        raise UnusableImageError(file_name, f"cannot be read ({error.strerror or error})") from error
    if num_bytes > _MAX_BYTES_PER_PIXEL * options.max_pixels:
        raise UnusableImageError(
            file_name,
            f"has {num_bytes} bytes, more than {_MAX_BYTES_PER_PIXEL} for each pixel of "
            f"INPUT.MAX_PIXELS = {options.max_pixels}",
        )
    if not content:
        raise UnusableImageError(file_name, "is empty")
    if content.startswith(_GIF_STARTS) and not options.read_gif:
        raise UnusableImageError(file_name, "is a GIF; INPUT.READ_GIF True reads them")
    return content


def _formats(options: ReadOptions) -> tuple[str, ...]:
    return (*formats(), "GIF") if options.read_gif else formats()


def _refusal(image: Image.Image, content: bytes, *, min_side: int, options: ReadOptions) -> str | None:
    """Why an opened image is not decoded, as part of a sentence; None if it is."""
    width, height = image.size
    if min(width, height) < min_side:
        return f"has {width}x{height} px, less than INPUT.MIN_IMAGE_SIDE = {min_side} on one side"
    if width * height > options.max_pixels:
        return f"has {width}x{height} px, more than INPUT.MAX_PIXELS = {options.max_pixels}"
    if image.format == "JPEG" and (scans := content.count(_START_OF_SCAN)) > _MAX_JPEG_SCANS:
        return f"is a JPEG of {scans} scans, more than {_MAX_JPEG_SCANS}"
    return None


def _decode(
    image: Image.Image, content: bytes, *, file_name: str, options: ReadOptions, draft_side: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an opened image whose file is ``content``; see :func:`read_reduced_rgb`."""
    width, height = image.size
    if _has_16_bit_colors(image):
        _warn_of_unused_color_bits(image, file_name)
    is_jpeg, orientation = image.format == "JPEG", _orientation(image)
    if is_jpeg and draft_side and min(width, height) >= 2 * draft_side:
        scale = draft_side / min(width, height)
        image.draft("RGB", (math.ceil(scale * width), math.ceil(scale * height)))
        full_size = (width, height) if orientation >= 5 else (height, width)
        return _to_rgb(image, file_name=file_name, options=options), full_size
    pixels = None
    if is_jpeg and image.mode == "RGB" and orientation == 1:
        # The same library and pixels as Pillow's without its detour over four bytes a pixel: 1.5 times as fast.
        # Whatever it refuses gets its chance, or its error message, from Pillow.
        with contextlib.suppress(RuntimeError):
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    if pixels is None:
        pixels = _to_rgb(image, file_name=file_name, options=options)
    return pixels, (pixels.shape[0], pixels.shape[1])


def _to_rgb(image: Image.Image, *, file_name: str, options: ReadOptions) -> np.ndarray:
    """Turn an opened image into upright uint8 H×W×3 RGB."""
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except DecodingTimeoutError:
        raise
    except Exception as error:
        logger.debug("%s: broken EXIF data count as none (%s)", file_name, error)
    if image.mode.startswith("I") or image.mode == "F":
        gray = _gray_to_8_bits(image, file_name=file_name, options=options)
        return np.repeat(gray[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 if there is none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DecodingTimeoutError:
        raise
    except Exception:  # broken EXIF data count as none
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow before 11 opens 16-bit greyscale PNG files in the 32-bit mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _has_16_bit_colors(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits for each of its colors, of which Pillow keeps 8."""
    tiles = getattr(image, "tile", [])
    return len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in tiles)


def _gray_to_8_bits(image: Image.Image, *, file_name: str, options: ReadOptions) -> np.ndarray:
    """Scale gray values to uint8 H×W: 16-bit ones by ``gray_bits``, 32-bit ones, which have no norm, by range."""
    values = np.asarray(image)
    if _is_16_bit(image):
        low, high = 0.0, float(2**options.gray_bits - 1)
        _warn_of_unused_bits(int(values.max()), file_name, options)
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scale = 255.0 / max(high - low, float(np.finfo(np.float64).tiny))
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // values.shape[1])
    for begin in range(0, len(values), rows):
        part = np.nan_to_num(
            values[begin : begin + rows].astype(np.float64), nan=low, posinf=high, neginf=low
        )
        scaled[begin : begin + rows] = np.rint(np.clip((part - low) * scale, 0, 255))
    return scaled


def _warn_of_unused_bits(largest: int, file_name: str, options: ReadOptions) -> None:
    """Point out, once in a process, images that would be nearly black: cameras store 10, 12 or 14 bits in 16."""
    used = next((bits for bits in (10, 12, 14) if 0 < largest < 2**bits), 16)
    if used < options.gray_bits:
        log_first_n(
            logging.WARNING,
            f"The 16-bit gray values of {file_name} use {used} bits only (the largest is {largest}) and become "
            f"dark: if that is so in all images, set INPUT.GRAY_BITS {used}.",
            name=__name__,
            key="caller",
        )


def _warn_of_unused_color_bits(image: Image.Image, file_name: str) -> None:
    """The same of colors, of which decoding leaves only the upper 8 bits: no key can bring the others back."""
    image.load()
    num_colors = 1 if image.mode == "LA" else 3
    largest = 256 * int(np.asarray(image)[..., :num_colors].max()) + 255
    used = next((bits for bits in (10, 12, 14) if largest < 2**bits), 16)
    if used < 16:
        log_first_n(
            logging.WARNING,
            f"The 16-bit colors of {file_name} use {used} bits only and become dark: if that is so in all images, "
            "convert them to 8 bits (INPUT.GRAY_BITS is for gray images).",
            name=__name__,
            key="caller",
        )
