"""Files appear whole or not at all."""

import pytest

from updetr_d2.utils.files import replacing


def test_two_machines_may_write_the_same_file_at_once(tmp_path):
    """Whose processes may have the same number."""
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644  # for other users of a shared cache, too


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="no space"), replacing(path) as file:
        file.write(b"half of the n")
        raise OSError("no space")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
