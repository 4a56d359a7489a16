"""Images are found and read inside of tar archives, whole, cut off, damaged or exchanged ones."""

import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.file_io import PathManager

from updetr_d2.data.datasets import shard_index
from updetr_d2.data.datasets.shard_index import ShardIndex, load_index, member_url, scan, write_index_beside
from updetr_d2.utils.cache import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def write_tar(path, members: dict[str, bytes], *, mode: str = "w", **options) -> str:
    with tarfile.open(path, mode, **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


MEMBERS = {
    "a.jpg": b"a" * 1000,
    "notes/a.json": b"{}",
    "deep/er/b.PNG": b"b" * 512,
    "._a.jpg": b"macOS",
    "empty.webp": b"",
    "ümläut.jpeg": b"u" * 3,
    "long" * 60 + ".jpg": b"c" * 2000,
}
IMAGES = [name for name in MEMBERS if not name.endswith(".json") and not name.startswith("._")]


def contents(shard: str, index) -> dict[str, bytes]:
    return {
        name: PathManager.open(member_url(shard, name, offset, size), "rb").read()
        for name, offset, size in zip(index.names, index.offsets, index.sizes)
    }


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_image_is_found_and_read_back(tmp_path, tar_format):
    shard = write_tar(tmp_path / "a.tar", MEMBERS, format=tar_format)
    index = load_index(shard)
    assert index.names == IMAGES
    assert index.problem == ""
    assert contents(shard, index) == {name: MEMBERS[name] for name in IMAGES}


def test_folders_and_links_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("folder.jpg", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    assert load_index(str(tmp_path / "a.tar")).names == []


@pytest.fixture(name="shard")
def shard_of_five(tmp_path):
    return write_tar(tmp_path / "a.tar", {f"{i}.jpg": bytes([i]) * 700 for i in range(5)})


def forbid_scans(monkeypatch):
    monkeypatch.setattr(shard_index, "scan", lambda _: pytest.fail("scanned again"))


@pytest.mark.parametrize("beside", [False, True])
def test_a_kept_index_is_not_made_again(shard, beside, monkeypatch):
    first = write_index_beside(shard) if beside else load_index(shard)
    forbid_scans(monkeypatch)
    if beside:
        os.utime(shard, (0, 0))  # a copy has another time
    again = load_index(shard)
    assert again.names == first.names
    assert contents(shard, again) == contents(shard, first)


@pytest.mark.parametrize("beside", [False, True])
def test_another_shard_under_the_name_is_indexed_anew(shard, beside):
    write_index_beside(shard) if beside else load_index(shard)
    size = os.path.getsize(shard)
    write_tar(shard, {"new.jpg": b"x" * 300, "other.jpg": b"y" * 4000})
    assert os.path.getsize(shard) == size  # tar fills up to 10 KiB
    os.utime(shard, (0, 0))
    assert load_index(shard).names == ["new.jpg", "other.jpg"]


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_index_is_made_again(shard, damage, tmp_path):
    load_index(shard)
    (cached,) = (tmp_path / "cache" / "shards").iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert len(load_index(shard).names) == 5


def test_without_a_cache_folder_it_works_all_the_same(shard, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert len(load_index(shard).names) == 5


def cut(shard: str, length: int) -> None:
    with open(shard, "r+b") as file:
        file.truncate(length)


# A header of 512 bytes and 700 bytes of content, filled up to 1024: a member every 1536 bytes.
@pytest.mark.parametrize(
    ("length", "num_images", "problem"),
    [
        (3 * 1536 + 600, 3, "ends inside of 3.jpg"),
        (3 * 1536 + 100, 3, "damaged|ends"),  # inside of a header
        (3 * 1536, 3, "ends without the mark"),
        (3 * 1536 - 100, 3, "ends|damaged"),  # the content is complete, the filling is not
        (3 * 1536 - 400, 2, "ends inside of 2.jpg"),
    ],
)
def test_a_shard_that_was_cut_off_is_read_up_to_there(shard, length, num_images, problem):
    cut(shard, length)
    index = load_index(shard)
    assert index.names == [f"{i}.jpg" for i in range(num_images)]
    assert set(contents(shard, index)) == set(index.names)
    assert re.search(problem, index.problem)


def test_damage_in_the_middle_is_reported(shard):
    with open(shard, "r+b") as file:
        file.seek(2 * 1536)
        file.write(b"\xff" * 512)
    index = load_index(shard)
    assert index.names == ["0.jpg", "1.jpg"]
    assert "damaged at byte 3072" in index.problem


@pytest.mark.parametrize("content", [b"", b"this is a text", b"\xff" * 20_000])
def test_what_is_no_archive_is_an_error_that_names_the_file(content, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar is no tar archive"):
        load_index(str(path))


@pytest.mark.parametrize(("mode", "tool"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_shards_say_how_to_unpack_them(mode, tool, tmp_path):
    shard = write_tar(tmp_path / "a.tar", MEMBERS, mode=mode)
    with pytest.raises(ValueError, match=f"compressed.*{tool}"):
        scan(shard)


def test_a_shard_exchanged_during_the_run_is_noticed(shard):
    index = load_index(shard)
    url = member_url(shard, "3.jpg", index.offsets[3], index.sizes[3])
    assert PathManager.open(url, "rb").read() == bytes([3]) * 700
    for change in (lambda: cut(shard, 4 * 1536 - 400), lambda: write_tar(shard, {"x.jpg": b"x" * 9000})):
        change()
        with pytest.raises(OSError, match="has changed since it was indexed"):
            PathManager.open(url, "rb")


def test_members_are_only_read(shard):
    index = load_index(shard)
    url = member_url(shard, "0.jpg", index.offsets[0], index.sizes[0])
    with pytest.raises(ValueError, match="mode 'rb'"):
        PathManager.open(url, "w")


def put(index: ShardIndex, place: int, **values) -> ShardIndex:
    """A copy of an index with one entry changed."""
    changed = {name: getattr(index, name).copy() for name in ("names", "offsets", "sizes")}
    for name, value in values.items():
        changed[name][place] = value
    return index._replace(**changed)


ODD_INDICES = {
    "offset in the middle of a block": lambda index: put(index, 1, offsets=index.offsets[1] + 1),
    "offset before the file": lambda index: put(index, 0, offsets=-512),
    "offset behind the file": lambda index: put(index, 4, offsets=1 << 40),
    "offsets not in order": lambda index: put(index, 1, offsets=index.offsets[3]),
    "negative size": lambda index: put(index, 1, sizes=-1),
    "size beyond the file": lambda index: put(index, 1, sizes=1 << 40),
    "no image": lambda index: put(index, 2, names="passwd"),
    "a name less": lambda index: index._replace(names=index.names[1:]),
    "sizes of another type": lambda index: index._replace(sizes=index.sizes.astype(np.float64)),
    "offsets as a table": lambda index: index._replace(offsets=index.offsets[:, None]),
}


@pytest.mark.parametrize("odd", ODD_INDICES.values(), ids=ODD_INDICES)
@pytest.mark.parametrize("beside", [False, True])
def test_an_index_that_cannot_be_right_is_made_again(shard, odd, beside, tmp_path):
    """The last entry, which is compared with the shard, is right in most of them."""
    right = write_index_beside(shard) if beside else load_index(shard)
    status = os.stat(shard)
    if beside:
        shard_index._write(Path(shard + shard_index.INDEX_SUFFIX), odd(right), [status.st_size, -1])
    else:
        (cached,) = (tmp_path / "cache" / "shards").iterdir()
        shard_index._write(cached, odd(right), [status.st_size, status.st_mtime_ns])
    again = load_index(shard)
    assert again.names == right.names
    assert contents(shard, again) == contents(shard, right)
