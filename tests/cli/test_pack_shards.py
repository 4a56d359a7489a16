"""Packing keeps every file byte for byte, in shards that WebDataset and our own data set read."""

import json
from collections import Counter

import numpy as np
import pytest
import webdataset
from PIL import Image

from updetr_d2.cli import pack_shards
from updetr_d2.data.datasets import shard_index
from updetr_d2.data.datasets.shards import load_shards
from updetr_d2.data.transforms.image_io import read_image_rgb
from updetr_d2.utils.cache import CACHE_VARIABLE


@pytest.fixture(name="tool", scope="module")
def _tool():
    return pack_shards


@pytest.fixture(name="images")
def folder_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for i in range(11):
        path = folder / f"class.{i % 3}" / f"photo.{i}{'x' * 120}.{('jpg', 'PNG', 'webp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


def pack(tool, *arguments) -> None:
    tool.main([str(argument) for argument in arguments])


def contents_of(folder) -> Counter:
    return Counter(path.read_bytes() for path in folder.rglob("*.*") if path.is_file())


def packed(folder) -> list[bytes]:
    dataset = load_shards(f"{folder}/*.tar")
    return [shard_index.read_member(each["file_name"]) for each in dataset]


def test_every_file_once_byte_for_byte(tool, images, tmp_path, capsys):
    pack(tool, images, tmp_path / "out", "--shard-images", 4)
    assert Counter(packed(tmp_path / "out")) == contents_of(images)
    printed = capsys.readouterr().out
    assert "11 images in 3 shards, 0 files left out" in printed
    name = printed.split("'")[1]
    assert name == f"shards:{tmp_path}/out/{{000000..000002}}.tar"
    assert len(load_shards(name.removeprefix("shards:"))) == 11


def test_webdataset_reads_the_shards(tool, images, tmp_path):
    pack(tool, images, tmp_path / "out", "--shard-images", 4)
    url = f"{tmp_path}/out/{{000000..000002}}.tar"
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert len({sample["__key__"] for sample in samples}) == 11
    found = Counter(value for each in samples for key, value in each.items() if not key.startswith("__"))
    assert found == contents_of(images)


def test_the_order_is_random_and_repeatable(tool, images, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", -1)):
        pack(tool, images, tmp_path / name, "--seed", seed)
    a, b, c, d = ((tmp_path / name / "000000.tar").read_bytes() for name in "abcd")
    assert a == b
    assert a != c
    assert packed(tmp_path / "d") == [
        path.read_bytes() for path in sorted(images.rglob("*.*")) if path.is_file()
    ]
    assert d != a


def test_size_limits_a_shard(tool, images, tmp_path):
    pack(tool, images, tmp_path / "out", "--shard-mb", 0.002)
    assert len(list((tmp_path / "out").glob("*.tar"))) > 3
    assert len(packed(tmp_path / "out")) == 11


def test_the_index_lies_beside_and_the_sources_are_listed(tool, images, tmp_path, monkeypatch):
    pack(tool, images, tmp_path / "out", "--shard-images", 6)
    monkeypatch.setattr(shard_index, "scan", lambda _: pytest.fail("scanned again"))
    dataset = load_shards(f"{tmp_path}/out/*.tar")
    lines = (tmp_path / "out" / "sources.tsv").read_text().splitlines()
    sources = dict(line.split("\t") for line in lines)
    for each in dataset:
        with open(json.loads(sources[each["image_id"]]), "rb") as file:
            assert shard_index.read_member(each["file_name"]) == file.read()
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize("check", [False, True])
def test_unreadable_files_are_left_out_and_named(tool, images, tmp_path, capsys, check):
    (images / "empty.jpg").touch()
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    pack(tool, images, tmp_path / "out", *["--check"] * check)
    assert len(packed(tmp_path / "out")) == 11 + (not check)
    errors = capsys.readouterr().err
    assert "empty.jpg: is empty" in errors
    assert ("broken.jpg: is not an image" in errors) == check


def test_shards_can_be_packed_again(tool, images, tmp_path):
    pack(tool, images, tmp_path / "small", "--shard-images", 3)
    pack(tool, f"shards:{tmp_path}/small/*.tar", tmp_path / "large")
    assert Counter(packed(tmp_path / "large")) == contents_of(images)
    name = load_shards(f"{tmp_path}/large/*.tar")[0]["file_name"]
    assert read_image_rgb(name).shape == (20, 20, 3)


def test_wrong_arguments_are_one_sentence(tool, images, tmp_path):
    with pytest.raises(SystemExit, match="not an empty folder"):
        pack(tool, images, images)
    with pytest.raises(SystemExit, match="Unknown data set"):
        pack(tool, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SystemExit, match="must be positive"):
        pack(tool, images, tmp_path / "out", "--shard-images", 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").touch()
    with pytest.raises(SystemExit, match="no image could be read"):
        pack(tool, tmp_path / "bad", tmp_path / "out")


def save_photo(path, width, height, *, exif=None, **options):
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    photo.save(path, **options, **({"exif": exif} if exif else {}))


def sources_of(folder) -> dict[str, list[str]]:
    """What sources.tsv says of each source, by its file name: member, and sizes if it was made smaller."""
    found = {}
    for line in (folder / "sources.tsv").read_text().splitlines():
        member, source, *sizes = line.split("\t")
        found[json.loads(source).rpartition("/")[2]] = [member, *sizes]
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_become_smaller_and_small_ones_stay_as_they_are(tool, tmp_path, monkeypatch, workers):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    save_photo(folder / "wide.png", 200, 150)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    save_photo(folder / "turned.jpg", 160, 80, exif=turned, quality=100, subsampling=0)
    save_photo(folder / "line.jpg", 400, 1)
    save_photo(folder / "small.jpg", 100, 99)
    Image.fromarray(np.full((150, 200), 4000, np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    pack(tool, folder, tmp_path / "out", "--max-side", 100, "--quality", 95, "--workers", workers)

    sources = sources_of(tmp_path / "out")
    assert {name: sizes for name, (_, *sizes) in sources.items()} == {
        "wide.png": ["200x150", "100x75"],
        "turned.jpg": ["80x160", "50x100"],  # the upright image's
        "line.jpg": ["400x1", "100x1"],
        "small.jpg": [],
        "deep.png": [],
    }
    members = {each["image_id"]: each["file_name"] for each in load_shards(f"{tmp_path}/out/*.tar")}
    for name in ("small.jpg", "deep.png"):
        assert shard_index.read_member(members[sources[name][0]]) == (folder / name).read_bytes()
    for name, size in (("wide.png", (100, 75)), ("turned.jpg", (50, 100))):
        expected = Image.fromarray(read_image_rgb(str(folder / name))).resize(size, Image.Resampling.BILINEAR)
        packed_pixels = read_image_rgb(members[sources[name][0]])
        assert np.abs(packed_pixels.astype(int) - np.asarray(expected)).mean() < 3


def test_quality_decides_on_the_bytes_of_what_became_smaller(tool, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    save_photo(folder / "a.png", 300, 200)
    sizes = []
    for quality in (30, 95):
        pack(tool, folder, tmp_path / str(quality), "--max-side", 150, "--quality", quality)
        sizes.append(len(packed(tmp_path / str(quality))[0]))
    assert sizes[0] < 0.7 * sizes[1]
    with pytest.raises(SystemExit, match="--quality in 1 to 100"):
        pack(tool, folder, tmp_path / "no", "--max-side", 150, "--quality", 0)
