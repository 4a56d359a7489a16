"""A folder tree of images becomes a data set: which files, in which order, and when its index is read again."""

import json
import os
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from updetr_d2.data.datasets import image_folder
from updetr_d2.data.datasets.image_folder import ImageFolder, load_image_folder
from updetr_d2.utils.cache import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(name="root")
def image_tree(tmp_path):
    root = tmp_path / "images"
    make(root, "b.JPG", "a.png", "z/c.jpeg", "z/deep/er/d.WebP", "e.bmp", "m/f.TIFF", "m/g.tif")
    make(root, "notes.txt", "z/h.jpg.part", "m/jpg")
    return root


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(folder: ImageFolder) -> list[str]:
    return [each["image_id"] for each in folder]


def age(root, seconds: int = 60) -> None:
    """Make the folders look as if they had not been changed for a while."""
    for folder, _, _ in os.walk(root):
        status = os.stat(folder)
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def test_images_of_all_formats_at_all_depths_in_an_order_of_names(root):
    folder = load_image_folder(str(root))
    expected = ["a.png", "b.JPG", "e.bmp", "m/f.TIFF", "m/g.tif", "z/c.jpeg", "z/deep/er/d.WebP"]
    assert names_of(folder) == expected
    assert [each["file_name"] for each in folder] == [str(root / name) for name in expected]
    assert len(folder) == 7
    assert folder[-1] == folder[6]
    with pytest.raises(IndexError):
        folder[7]


def test_relative_paths_and_home_folders(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert load_image_folder("images")[0]["file_name"] == str(root / "a.png")
    monkeypatch.setenv("HOME", str(root.parent))
    assert load_image_folder("~/images")[0]["file_name"] == str(root / "a.png")


def test_links_are_followed_and_cycles_end(root, tmp_path):
    make(tmp_path / "elsewhere", "x.jpg", "sub/y.jpg")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "link.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
    (root / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "z" / "up").symlink_to(root)
    (root / "z" / "self").symlink_to(root / "z")
    names = names_of(load_image_folder(str(root)))
    assert len(names) == len(set(names)) == 10
    assert {"link/x.jpg", "link/sub/y.jpg", "link.jpg"} <= set(names)


def test_odd_names_survive(root):
    odd = ["sp ace.jpg", "ümläut.jpg", "new\nline.jpg", os.fsdecode(b"latin\xe9.jpg")]
    make(root, *odd)
    for _ in range(2):  # read from the folder, then from the index
        age(root)
        folder = load_image_folder(str(root))
        assert set(odd) <= set(names_of(folder))
        assert all(os.path.isfile(each["file_name"]) for each in folder)


class Listed(Exception):
    """The folder was read although the index should have been enough."""


def forbid_listing(monkeypatch):
    def refuse(*_):
        raise Listed

    monkeypatch.setattr(image_folder, "_list_folder", refuse)


def test_unchanged_folders_are_not_listed_again(root, monkeypatch):
    age(root)
    first = load_image_folder(str(root))
    forbid_listing(monkeypatch)
    assert names_of(load_image_folder(str(root))) == names_of(first)


@pytest.mark.parametrize("change", ["add", "remove", "add deep", "remove folder"])
def test_changes_are_seen(root, change):
    age(root)
    before = set(names_of(load_image_folder(str(root))))
    if change == "add":
        make(root, "new.jpg")
        expected = before | {"new.jpg"}
    elif change == "remove":
        (root / "a.png").unlink()
        expected = before - {"a.png"}
    elif change == "add deep":
        make(root, "z/deep/er/new/new.jpg")
        expected = before | {"z/deep/er/new/new.jpg"}
    else:
        for name in ("m/f.TIFF", "m/g.tif", "m/jpg"):
            (root / name).unlink()
        (root / "m").rmdir()
        expected = before - {"m/f.TIFF", "m/g.tif"}
    assert set(names_of(load_image_folder(str(root)))) == expected


def test_only_the_changed_folder_is_listed_again(root, monkeypatch):
    age(root)
    load_image_folder(str(root))
    make(root, "m/new.jpg")
    listed = []
    original = image_folder._list_folder
    monkeypatch.setattr(
        image_folder, "_list_folder", lambda path, mtime: listed.append(path) or original(path, mtime)
    )
    assert "m/new.jpg" in names_of(load_image_folder(str(root)))
    assert listed == [str(root / "m")]


def test_a_folder_read_while_it_changes_is_read_again(root):
    """Two changes within one tick of the file system's clock leave the same modification time."""
    load_image_folder(str(root))
    status = os.stat(root)
    make(root, "new.jpg")
    os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "new.jpg" in names_of(load_image_folder(str(root)))


ODD_INDICES = (
    *("", "{", "[]", '{"root": 1}', '{"root": "R", "folders": {"": 3}}'),
    *(
        f'{{"root": "R", "folders": {{"": {entry}}}}}'
        for entry in (
            "[1, 2, 3, 4]",
            '["x", [], [], {}]',
            "[1, [], [5], {}]",
            '[1, [], [], {".a": "b"}]',
            "[1, [], []]",
        )
    ),
    '{"root": "R", "folders": {"": [MTIME, [], ["../../x.jpg"], {}]}}',
    '{"root": "R", "folders": {"": [MTIME, [".."], [], {}]}}',
)


@pytest.mark.parametrize("damage", ODD_INDICES)
def test_a_damaged_index_is_made_again(root, damage):
    age(root)
    expected = names_of(load_image_folder(str(root)))
    index = image_folder._index_file(str(root))
    assert json.loads(index.read_text())["root"] == str(root)
    index.write_text(damage.replace("MTIME", str(os.stat(root).st_mtime_ns)).replace("R", str(root)))
    assert names_of(load_image_folder(str(root))) == expected
    assert json.loads(index.read_text())["root"] == str(root)


def test_without_a_cache_folder_it_works_all_the_same(root, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert len(load_image_folder(str(root))) == 7
    assert "is not kept" in caplog.text


@pytest.mark.parametrize("name", ["nowhere", "images/a.png", "empty", ""])
def test_folders_without_images_are_a_clear_error(root, name):
    (root.parent / "empty").mkdir()
    with pytest.raises(ValueError, match=r"does not exist|has no images"):
        load_image_folder(str(root.parent / name) if name else "")


def test_memory_is_that_of_the_names():
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(20_000)]
    folder = ImageFolder("/data", names)
    assert len(pickle.dumps(folder)) < 20_000 * (len(names[-1]) + 8) + 1000
    for i in np.random.default_rng(0).integers(20_000, size=50):
        assert folder[int(i)] == {"file_name": f"/data/{names[i]}", "image_id": names[i]}


@pytest.mark.slow
def test_a_hundred_thousand_files_start_in_seconds(tmp_path):
    root = tmp_path / "images"
    make(root, *(f"n{i % 100:04d}/{i}.JPEG" for i in range(100_000)))
    age(root)
    assert len(load_image_folder(str(root))) == 100_000
    started = time.perf_counter()
    assert len(load_image_folder(str(root))) == 100_000
    assert time.perf_counter() - started < 3


def test_real_images_can_be_read(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with Image.open(load_image_folder(str(tmp_path))[0]["file_name"]) as image:
        assert image.size == (20, 20)


def test_files_of_other_kinds_are_counted_and_those_that_look_like_images_are_named(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(
        image_folder, "extensions", lambda optional=False: (".jpg", ".heic") if optional else (".jpg",)
    )
    folder = tmp_path / "photos"
    for name in ("a.jpg", "b.HEIC", "sub/c.heic", "d.gif", "sub/e.txt", "sub/f.TXT", "README", ".DS_Store"):
        make(folder, name)
    age(folder)
    caplog.set_level("INFO")
    for _ in range(2):  # the second one from the index
        caplog.clear()
        assert names_of(load_image_folder(str(folder))) == ["a.jpg"]
        assert "not read: 2 .heic (pip install pillow-heif reads them), 1 .gif" in caplog.text
        assert "Other files below" in caplog.text and "2 .txt, 1 without an extension" in caplog.text
    # Once the plugin is there the index need not be made again.
    monkeypatch.setattr(image_folder, "extensions", lambda optional=False: (".jpg", ".heic"))
    caplog.clear()
    assert len(load_image_folder(str(folder))) == 3
    assert ".heic" not in caplog.text


def test_a_folder_of_unread_kinds_alone_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    make(tmp_path / "photos", "a.cr2")
    with pytest.raises(ValueError, match=r"has no images \(\.jpg.*\), but 1 \.cr2"):
        load_image_folder(str(tmp_path / "photos"))
