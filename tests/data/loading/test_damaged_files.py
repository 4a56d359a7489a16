"""Hundreds of damaged image files go through the whole mapper: each becomes a sample or is counted."""

import faulthandler
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_cfg
from PIL import Image

from updetr_d2.data.loading.build import TestLoader
from updetr_d2.data.loading.retry import RetryPolicy
from updetr_d2.tasks import build_mapper
from updetr_d2.utils.cache import CACHE_VARIABLE

# No test may hang: after this many seconds the process ends and shows where it was.
TIME_LIMIT = 300


def originals() -> dict[str, bytes]:
    """Intact files of many kinds, of noise over a gradient."""
    rng = np.random.default_rng(0)
    pixels = np.linspace(0, 200, 48 * 40 * 3).reshape(48, 40, 3) + rng.integers(0, 55, (48, 40, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    kinds = {
        "baseline.jpg": (image, {"quality": 90}),
        "progressive.jpg": (image, {"progressive": True}),
        "restarts.jpg": (image, {"restart_marker_rows": 1, "subsampling": "4:2:2"}),
        "exif.jpg": (image, {"exif": exif}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "grey.jpg": (image.convert("L"), {}),
        "rgb.png": (image, {}),
        "rgba.png": (image.convert("RGBA"), {"exif": exif}),
        "palette.png": (image.convert("P"), {"transparency": 3}),
        "16bit.png": (Image.fromarray((pixels[..., 0] * 250).astype(np.uint16)), {}),
        "lossy.webp": (image, {}),
        "lossless.webp": (image.convert("RGBA"), {"lossless": True, "exif": exif}),
        "animated.webp": (image, {"save_all": True, "append_images": [image.rotate(90)]}),
    }
    files = {}
    for name, (each, options) in kinds.items():
        buffer = io.BytesIO()
        each.save(buffer, format={"jpg": "JPEG"}.get(name[-3:], name.split(".")[1].upper()), **options)
        files[name] = buffer.getvalue()
    return files


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Do to a file what disks, networks and programs do, once to thrice."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        size = len(data)
        if size < 2:
            break
        # Half of the time in the first bytes, where sizes and tables are.
        begin = int(rng.integers(size if rng.random() < 0.5 else min(size, 200)))
        length = int(rng.integers(1, max(2, min(64, size - begin))))
        match rng.integers(8):
            case 0:  # cut off
                del data[begin:]
            case 1:  # a bit
                data[begin] ^= 1 << int(rng.integers(8))
            case 2:  # bytes of another file
                data[begin : begin + length] = rng.bytes(length)
            case 3:  # a lost block
                del data[begin : begin + length]
            case 4:  # a block twice
                data[begin:begin] = data[begin : begin + length]
            case 5:  # a block that was never written
                data[begin : begin + length] = bytes(length)
            case 6:  # extreme numbers
                data[begin : begin + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"][
                    rng.integers(3)
                ]
            case 7:  # another file inside of this one
                data[begin : begin + length] = b"\xff\xd8\xff\xe0" + b"\x89PNG" + b"RIFF"
    return bytes(data)


def write_damaged_files(folder: Path, num_files: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    kinds = list(originals().items())
    dataset_dicts = []
    for i in range(num_files):
        name, content = kinds[i % len(kinds)]
        path = folder / f"{i}_{name}"
        path.write_bytes(damage(content, rng))
        dataset_dicts.append({"file_name": str(path), "image_id": i})
    return dataset_dicts


@pytest.fixture(autouse=True)
def no_hanging():
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("num_files", [650, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("is_train", [True, False])
def test_every_damaged_file_becomes_a_sample_or_is_counted(num_files, is_train, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    dataset_dicts = write_damaged_files(tmp_path, num_files, seed=int(is_train))
    cfg = tiny_cfg(
        "UPDETR", *("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "INPUT.QUERY_PATCH.SIZE", 16)
    )
    loader = TestLoader(
        dataset_dicts,
        build_mapper(cfg, is_train=is_train),
        range(num_files),
        batch_size=1,
        num_workers=0,
        retry=RetryPolicy(0, 0),
        pin_memory=False,
    )
    kinds: dict[bool, Counter] = {True: Counter(), False: Counter()}
    for (sample,) in loader:
        assert sample["image"].dtype == torch.uint8
        assert sample["image"].shape[0] == 3
        assert sample["patches"].shape == (5, 3, 16, 16)
        boxes = sample["instances"].gt_boxes.tensor
        height, width = sample["image"].shape[1:]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        kinds[True][Path(sample["file_name"]).name.split("_")[1]] += 1
    reasons = loader.skipped_files.reasons
    for name, reason in reasons.items():
        assert reason
        kinds[False][Path(name).name.split("_")[1]] += 1
    assert kinds[True].total() + kinds[False].total() == num_files
    # The damage matters: of every kind some can still be used and some cannot.
    assert set(kinds[False]) == set(originals())
    assert len(kinds[True]) > len(originals()) / 2


def test_the_intact_files_can_all_be_used(tmp_path):
    mapper = build_mapper(tiny_cfg("UPDETR"), is_train=True)
    for name, content in originals().items():
        (tmp_path / name).write_bytes(content)
        assert mapper({"file_name": str(tmp_path / name)})["patches"].shape == (5, 3, 128, 128)
