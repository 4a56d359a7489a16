"""Kinds that only a plugin reads: AVIF, HEIC and JPEG XL come out as the pixels that went in."""

import numpy as np
import pytest
from PIL import Image

from updetr_d2.data.transforms import image_kinds
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb, read_image_size


@pytest.mark.parametrize(
    ("extension", "plugin"), [(".avif", None), (".heic", "pillow_heif"), (".jxl", "pillow_jxl")]
)
def test_optional_kinds_are_read_upright(extension, plugin, tmp_path):
    if plugin:
        pytest.importorskip(plugin)
    if extension not in image_kinds.extensions():
        pytest.skip(f"this Pillow does not read {extension}")
    half = np.full((48, 64, 3), 200, np.uint8)
    half[:, :32] = 20
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    for name, expected, options in (("a", half, {}), ("b", np.rot90(half, -1), {"exif": exif.tobytes()})):
        path = str(tmp_path / f"{name}{extension}")
        Image.fromarray(half).save(path, quality=95, **options)
        image = read_image_rgb(path)
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 4
        assert read_image_size(path) == expected.shape[1::-1]
    content = (tmp_path / f"a{extension}").read_bytes()
    (tmp_path / f"cut{extension}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnusableImageError):
        read_image_rgb(str(tmp_path / f"cut{extension}"))


def test_what_is_not_read_is_said_in_two_parts_and_by_number():
    images, others = image_kinds.not_read([(".txt", 1), (".heic", 2), (".gif", 1), ("", 3), (".heic", 5)])
    assert images == "7 .heic (pip install pillow-heif reads them), 1 .gif"
    assert others == "3 without an extension, 1 .txt"
    assert image_kinds.not_read([]) == ("", "")


def test_a_plugin_that_does_not_load_is_as_none(monkeypatch):
    def broken(name):
        raise RuntimeError("made for another Pillow")

    monkeypatch.setattr(image_kinds.importlib, "import_module", broken)
    image_kinds._optional.cache_clear()
    try:
        assert "JPEG" in image_kinds.formats() and ".jpg" in image_kinds.extensions()
    finally:
        image_kinds._optional.cache_clear()
