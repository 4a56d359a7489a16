"""Every common kind of image file comes out as upright 8-bit RGB, and unusable ones as one exception."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from updetr_d2.data.transforms import image_io
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.read_options import ReadOptions

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def four_colours(side: int = 32) -> np.ndarray:
    """Red and green above blue and white: shows channel order and orientation."""
    quarters = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    return quarters.repeat(side // 2, 0).repeat(side // 2, 1)


def corners(image: np.ndarray) -> np.ndarray:
    """The colours near the four corners, 2×2×3."""
    return image[[3, -4]][:, [3, -4]].astype(int)


def save(image: Image.Image, path, **options) -> str:
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        ("RGB", "a.jpg", {"quality": 95, "subsampling": 0}),
        ("RGB", "a.jpg", {"quality": 95, "progressive": True, "subsampling": 0}),
        ("CMYK", "a.jpg", {"quality": 95, "subsampling": 0}),
        ("RGB", "a.png", {}),
        ("RGBA", "a.png", {}),
        ("P", "a.png", {}),
        ("P", "a.gif", {}),
        ("RGB", "a.webp", {"lossless": True}),
        ("RGB", "a.bmp", {}),
        ("RGB", "a.tif", {}),
        ("RGB", "a.tif", {"compression": "tiff_lzw"}),
        ("CMYK", "a.tif", {}),
    ],
)
def test_colours_of_every_format_and_mode(mode, name, options, tmp_path):
    path = save(Image.fromarray(four_colours()).convert(mode), tmp_path / name, **options)
    image = read_image_rgb(path, options=ReadOptions(read_gif=True))
    assert image.dtype == np.uint8
    assert image.shape == (32, 32, 3)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.abs(corners(image) - corners(four_colours())).max() <= 12


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_images_have_three_equal_channels(mode, tmp_path):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(20, 0)
    image = read_image_rgb(save(Image.fromarray(ramp).convert(mode), tmp_path / "a.png"))
    assert (image == image[..., :1]).all()
    if mode != "1":
        np.testing.assert_array_equal(image[..., 0], ramp)
    assert set(np.unique(image)) <= ({0, 255} if mode == "1" else set(range(256)))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(name, tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(20, 0)
    image = read_image_rgb(save(Image.fromarray(ramp), tmp_path / name))
    np.testing.assert_array_equal(image[..., 1], np.arange(256)[None].repeat(20, 0))


def test_16_bit_colour_png_is_scaled(tmp_path):
    """Pillow cannot write these, so the file is put together by hand."""
    row = b"\0" + b"".join(struct.pack(">3H", 65535, 257 * 100, 0) for _ in range(20))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * 20))
        + chunk(b"IEND", b"")
    )
    assert (read_image_rgb(str(path)) == [255, 100, 0]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_grey_uses_its_own_range(dtype, tmp_path):
    values = np.linspace(-1000, 99_000, 256).astype(dtype)[None].repeat(20, 0)
    image = read_image_rgb(save(Image.fromarray(values), tmp_path / "a.tif"))
    assert np.abs(image[..., 2].astype(int) - np.arange(256)).max() <= 1


def test_values_that_are_not_finite_do_not_spoil_the_image(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(20, 0)
    values[0, :2] = np.nan, np.inf
    image = read_image_rgb(save(Image.fromarray(values), tmp_path / "a.tif"))
    assert image[0, :2, 0].tolist() == [0, 255]
    np.testing.assert_array_equal(image[1, :, 0], np.arange(256))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixels_are_white(mode, tmp_path):
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[:, :10] = (255, 0, 0, 255)
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.fromarray((rgba[..., 3] == 0).astype(np.uint8), mode="P")
        image.putpalette([*RED, *BLUE])
        path = save(image, tmp_path / "a.png", transparency=1)
    else:
        path = save(image, tmp_path / "a.png")
    pixels = read_image_rgb(path)
    assert (pixels[:, :10] == RED).all()
    assert (pixels[:, 10:] == WHITE).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_orientation_is_applied(orientation, name, tmp_path):
    """Store the image as a camera held otherwise would, with the tag that turns it upright again."""
    upright = np.concatenate([four_colours(), np.zeros((16, 32, 3), np.uint8)])
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,  # shown turned clockwise, so stored turned anticlockwise
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[274] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / name, exif=exif, quality=95)
    image = read_image_rgb(path)
    assert image.shape == upright.shape
    assert np.abs(corners(image[:32]) - corners(upright[:32])).max() <= 90  # lossy chroma
    assert image[40:].mean() < 10


def test_broken_exif_counts_as_none(tmp_path):
    path = save(Image.fromarray(four_colours()), tmp_path / "a.jpg", exif=b"Exif\0\0nonsense", quality=95)
    assert read_image_rgb(path).shape == (32, 32, 3)


def test_content_counts_not_the_extension(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(four_colours()).save(path, format="PNG")
    np.testing.assert_array_equal(read_image_rgb(str(path)), four_colours())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:2:0", "quality": 60},
        {"subsampling": "4:4:4", "optimize": True},
        {"subsampling": "4:2:2", "restart_marker_rows": 1},
        {"exif": b"Exif\0\0nonsense"},
    ],
)
@pytest.mark.parametrize("side", [17, 64, 133])
def test_jpeg_pixels_are_exactly_pillows(options, side, tmp_path, monkeypatch):
    """Upright colour JPEGs are decoded without Pillow, which has the same library inside."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes(side, **options))
    with Image.open(path) as image:
        expected = np.array(image)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded by Pillow"))
    image = read_image_rgb(str(path))
    np.testing.assert_array_equal(image, expected)
    assert image.flags.c_contiguous
    assert image.flags.writeable


def test_without_torchvisions_decoder_pillow_takes_over(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes())
    expected = read_image_rgb(str(path))

    def refuse(*_, **__):
        raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")

    monkeypatch.setattr(image_io, "decode_jpeg", refuse)
    np.testing.assert_array_equal(read_image_rgb(str(path)), expected)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_tensors_have_channels_first(image_format, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype(dtype)
    expected = torch.from_numpy(pixels[..., :: 1 if image_format == "RGB" else -1].copy()).permute(0, 3, 1, 2)
    stacked = image_io.stack_to_tensor(list(pixels), image_format)
    assert torch.equal(stacked, expected)
    assert stacked.is_contiguous()
    assert torch.equal(image_io.to_tensor(pixels[0], image_format), expected[0])
    for view in (pixels[0, :, ::-1], pixels[0, 1:4, 2:6]):  # flipped, cropped
        assert torch.equal(image_io.to_tensor(view, "RGB"), torch.from_numpy(view.copy()).permute(2, 0, 1))


def jpeg_bytes(side: int = 64, **options) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is a text file", "not an image"),
        (jpeg_bytes()[:1000], "truncated"),
        (jpeg_bytes(progressive=True)[:1000], "truncated"),
        (jpeg_bytes()[:10], "cannot be decoded|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n", "not an image"),
    ],
)
def test_unusable_files_say_what_is_wrong(content, reason, tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UnusableImageError, match=reason) as caught:
        read_image_rgb(str(path))
    assert caught.value.file_name == str(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "nowhere.jpg", tmp_path):
        with pytest.raises(UnusableImageError, match="cannot be read"):
            read_image_rgb(str(path))


def test_small_images_are_refused_by_the_key(tmp_path):
    path = save(Image.new("RGB", (300, 16)), tmp_path / "a.png")
    with pytest.raises(UnusableImageError, match=r"300x16 px.*INPUT\.MIN_IMAGE_SIDE = 17"):
        read_image_rgb(path, min_side=17)
    assert read_image_rgb(path, min_side=16).shape == (16, 300, 3)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    path = save(Image.new("RGB", (100, 100)), tmp_path / "a.png")
    monkeypatch.setattr(image_io.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnusableImageError, match="DecompressionBomb"):
        read_image_rgb(path)


def test_the_exception_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(UnusableImageError("a.jpg", "is empty")))
    assert (error.file_name, error.reason, str(error)) == ("a.jpg", "is empty", "a.jpg: is empty")


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_only_regular_files_are_read(tmp_path, kind):
    """A pipe would wait for ever and /dev/zero never end."""
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UnusableImageError, match="not a regular file"):
        read_image_rgb(str(path))
