"""Images that cost much: each is refused with the key to change, and none holds a worker for long."""

import io
import logging
import signal
import struct
import threading
import time
import tracemalloc
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import GifImagePlugin, Image

from updetr_d2.data.transforms import image_io
from updetr_d2.data.transforms.image_io import (
    UnusableImageError,
    read_image_rgb,
    read_image_size,
    read_reduced_rgb,
)
from updetr_d2.data.transforms.read_options import DecodingTimeoutError, ReadOptions, time_limit

ORIENTATION = 274


@pytest.fixture(autouse=True)
def no_alarm_stays():
    """Whatever a test does, the timer of the process is as before."""
    handler = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is handler


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(image: Image.Image, path, **options) -> str:
    image.save(path, **options)
    return str(path)


def gif_with_comments(num_bytes: int) -> bytes:
    """A small GIF behind comment blocks, on which Pillow spends a time that grows with their square."""
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).convert("P").save(buffer, format="GIF")
    content = buffer.getvalue()
    header = 13 + 3 * 2 ** ((content[10] & 7) + 1)
    comment = b"\x21\xfe" + (b"\xff" + b"c" * 255) * (num_bytes // 256) + b"\0"
    return content[:header] + comment + content[header:]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_images_of_more_than_max_pixels_are_refused_by_the_key(name, tmp_path):
    path = save(Image.new("RGB", (50, 41)), tmp_path / name)
    with pytest.raises(UnusableImageError, match=r"50x41 px, more than INPUT\.MAX_PIXELS = 2049"):
        read_image_rgb(path, options=ReadOptions(max_pixels=2049))
    assert read_image_rgb(path, options=ReadOptions(max_pixels=2050)).shape == (41, 50, 3)


def test_nothing_of_a_large_image_is_decoded(tmp_path, monkeypatch):
    path = save(Image.new("RGB", (50, 40)), tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnusableImageError, match=r"MAX_PIXELS"):
        read_image_rgb(path, options=ReadOptions(max_pixels=100))


def test_files_that_no_image_needs_are_not_read_into_memory(tmp_path):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    with pytest.raises(UnusableImageError, match=r"1099511627776 bytes.*INPUT\.MAX_PIXELS = 100000000"):
        read_image_rgb(str(path))


def test_a_gif_is_read_only_if_asked_for(tmp_path):
    path = save(Image.fromarray(noise(8, 8)).convert("P"), tmp_path / "a.jpg", format="GIF")
    with pytest.raises(UnusableImageError, match=r"is a GIF; INPUT\.READ_GIF"):
        read_image_rgb(path)
    with pytest.raises(UnusableImageError):
        read_image_size(path)
    asked = ReadOptions(read_gif=True)
    assert read_image_rgb(path, options=asked).shape == (8, 8, 3)
    assert read_image_size(path, options=asked) == (8, 8)


@pytest.mark.parametrize("read", [read_image_rgb, read_image_size])
def test_comments_of_a_gif_cost_no_time(read, tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(gif_with_comments(20_000_000))
    started = time.perf_counter()
    with pytest.raises(UnusableImageError):
        read(str(path))
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("read", [read_image_rgb, read_image_size])
def test_decoding_ends_at_the_time_limit(read, tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(gif_with_comments(20_000_000))
    started = time.perf_counter()
    with pytest.raises(UnusableImageError, match=r"INPUT\.DECODE_TIME_LIMIT = 0\.2 s"):
        read(str(path), options=ReadOptions(read_gif=True, time_limit=0.2))
    assert time.perf_counter() - started < 2


def test_reading_a_slow_file_system_does_not_count(tmp_path, monkeypatch):
    path = save(Image.fromarray(noise(8, 8)), tmp_path / "a.png")
    read_file = image_io._read_file

    def wait(*args):
        time.sleep(0.3)
        return read_file(*args)

    monkeypatch.setattr(image_io, "_read_file", wait)
    assert read_image_rgb(path, options=ReadOptions(time_limit=0.2)).shape == (8, 8, 3)


def test_another_alarm_of_the_process_goes_on():
    fired = []
    handler = signal.signal(signal.SIGALRM, lambda *_: fired.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with time_limit(10):
            time.sleep(0.1)
        assert not fired
        time.sleep(0.4)
        assert len(fired) == 1
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_threads_have_no_limit_and_no_error(tmp_path):
    """As in a web server, whose threads get no signals."""
    path = save(Image.fromarray(noise(8, 8)), tmp_path / "a.png")
    found = []
    thread = threading.Thread(target=lambda: found.append(read_image_rgb(path)))
    thread.start()
    thread.join()
    assert found[0].shape == (8, 8, 3)


def test_time_limit_of_zero_is_none():
    with time_limit(0):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(DecodingTimeoutError), time_limit(0.01):
        time.sleep(1)


def test_jpegs_of_thousands_of_scans_are_refused(tmp_path):
    """Each scan is a pass over all pixels, in a few bytes: a small file could take hours."""
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, format="JPEG", progressive=True)
    content = buffer.getvalue()
    assert read_image_rgb(write(tmp_path / "a.jpg", content)).shape == (64, 64, 3)
    scan = content.rindex(b"\xff\xda")
    repeated = content[:scan] + content[scan:-2] * 1000 + content[-2:]
    with pytest.raises(UnusableImageError, match=r"is a JPEG of 10\d\d scans"):
        read_image_rgb(write(tmp_path / "b.jpg", repeated))


def write(path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_16_bit_gray_needs_few_bytes_a_pixel(tmp_path):
    side = 1500
    path = save(
        Image.fromarray(np.full((side, side), 30000, np.uint16)), tmp_path / "a.png", compress_level=1
    )
    tracemalloc.start()
    try:
        image = read_image_rgb(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert image.shape == (side, side, 3)
    # Two for the values, one for the gray, three for the result; less what works on a part of the rows.
    assert (peak - 8 * 3 * image_io._PIXELS_AT_ONCE) / side**2 < 7


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_gray_values_of_fewer_bits_are_scaled_by_the_key(bits, name, tmp_path):
    ramp = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16)[None].repeat(20, 0)
    image = read_image_rgb(save(Image.fromarray(ramp), tmp_path / name), options=ReadOptions(gray_bits=bits))
    assert np.abs(image[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    assert image[0, -1, 0] == 255


def test_values_beyond_the_bits_are_white(tmp_path):
    values = np.array([[0, 4095, 4096, 65535]], np.uint16).repeat(20, 0)
    image = read_image_rgb(
        save(Image.fromarray(values), tmp_path / "a.png"), options=ReadOptions(gray_bits=12)
    )
    assert image[0, :, 0].tolist() == [0, 255, 255, 255]


@pytest.mark.parametrize(("largest", "bits"), [(1023, 10), (1024, 12), (4095, 12), (16383, 14)])
def test_dark_16_bit_images_get_one_line_with_the_key(largest, bits, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    path = save(Image.fromarray(np.full((20, 20), largest, np.uint16)), tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        read_image_rgb(path)
        read_image_rgb(path)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert f"use {bits} bits" in lines[0]
    assert f"INPUT.GRAY_BITS {bits}" in lines[0]
    caplog.clear()
    read_image_rgb(path, options=ReadOptions(gray_bits=bits))
    assert not caplog.records


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("largest", "bits"), [(1023, 10), (4095, 12), (16383, 14), (16384, None)])
def test_dark_16_bit_colors_get_one_line(largest, bits, channels, name, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    values = np.full((20, 20, channels), 65535, np.uint16)  # alpha counts as no color
    values[..., :3] = 500
    values[3, 4, 1] = largest
    assert cv2.imwrite(str(tmp_path / name), values)
    with caplog.at_level(logging.WARNING):
        read_image_rgb(str(tmp_path / name))
        read_image_rgb(str(tmp_path / name))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (bits is not None)
    assert all(f"use {bits} bits" in line and "convert them to 8 bits" in line for line in lines)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_drafts_look_like_the_whole_image_resized(orientation, mode, tmp_path):
    gradient = np.linspace(0, 200, 400 * 300 * 3).reshape(400, 300, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(Image.fromarray(gradient).convert(mode), tmp_path / "a.jpg", exif=exif, quality=95)
    whole = read_image_rgb(path)
    reduced, size = read_reduced_rgb(path, draft_side=70)
    assert size == whole.shape[:2]
    assert reduced.shape[:2] == (size[0] // 4, size[1] // 4)
    expected = Image.fromarray(whole).resize(reduced.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(reduced.astype(int) - np.asarray(expected)).max() <= 6


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_images_near_the_wanted_size_are_not_drafted(name, tmp_path):
    path = save(Image.fromarray(noise(120, 90)), tmp_path / name)
    reduced, size = read_reduced_rgb(path, draft_side=46)
    assert size == (120, 90)
    np.testing.assert_array_equal(reduced, read_image_rgb(path))


def test_the_gif_of_these_tests_is_one(tmp_path):
    """Else the tests above would pass for a wrong reason."""
    content = gif_with_comments(1000)
    assert struct.unpack("<HH", content[6:10]) == (8, 8)
    with Image.open(io.BytesIO(content)) as image:
        assert isinstance(image, GifImagePlugin.GifImageFile)
        image.load()
