"""The cache folder follows its environment variable and says clearly when it cannot be written."""

from pathlib import Path

import pytest

from updetr_d2.utils.cache import cache_folder, cache_root, keep_copy


def test_folder_is_created_below_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache"
    assert not cache_root().exists()
    folder = cache_folder("a", "b")
    assert folder == tmp_path / "cache" / "a" / "b"
    assert folder.is_dir()
    assert cache_folder("a", "b") == folder


def test_default_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("UPDETR_D2_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "updetr_d2"


def test_unusable_folder_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="UPDETR_D2_CACHE"):
        cache_folder("a")


def test_a_copy_keeps_the_content_and_another_content_is_another_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.json"
    path.write_text("one")
    first = keep_copy(path, "annotations")
    assert keep_copy(path, "annotations") == first
    path.write_text("two")
    second = keep_copy(path, "annotations")
    assert [Path(each).read_text() for each in (first, second)] == ["one", "two"]
    assert len(list((tmp_path / "cache" / "annotations").iterdir())) == 2
