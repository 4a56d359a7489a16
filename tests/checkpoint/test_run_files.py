"""Checkpoint files appear whole or not at all, damage is found before use, and old ones are removed."""

import logging
import os
import resource

import pytest
import torch

from updetr_d2.checkpoint import run_files


@pytest.fixture
def size_limit():
    """Function that makes writing beyond a number of bytes fail, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(os.listdir(folder))


def test_until_all_is_written_readers_find_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        assert path.read_text() == "old"

    run_files.write_atomically(str(path), write)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, size_limit):
    path = tmp_path / "model_0000001.pth"
    run_files.save_atomically({"weights": torch.zeros(10)}, str(path))
    size_limit(50_000)
    with pytest.raises(
        run_files.SaveError, match=r"model_0000001\.pth was not written \(File too large\).*OUTPUT_DIR"
    ):
        run_files.save_atomically({"weights": torch.zeros(100_000)}, str(path))
    assert torch.load(path, weights_only=True)["weights"].shape == (10,)
    assert names(tmp_path) == ["model_0000001.pth"]


def test_any_error_of_the_writer_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError):
        run_files.write_atomically(str(path), lambda file: {}["missing"])
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_output_folder_that_cannot_be_used_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        run_files.SaveError, match=r"OUTPUT_DIR '.*file/run' cannot be made \(Not a directory\)"
    ):
        run_files.check_writable(str(tmp_path / "file" / "run"))
    run_files.check_writable(str(tmp_path / "a" / "b"))
    assert names(tmp_path / "a" / "b") == []


def test_read_only_folder_is_an_error_at_the_start(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(run_files.SaveError, match=r"was not written \(Permission denied\).*OUTPUT_DIR"):
        run_files.check_writable(str(tmp_path))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.pth"
    torch.save({"weights": torch.rand(1000)}, path)
    return path


def test_a_whole_file_has_no_damage(good):
    assert run_files.find_damage(str(good)) is None


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_damaged(good, kept):
    content = good.read_bytes()
    good.write_bytes(content[: int(kept * len(content))])
    assert run_files.find_damage(str(good))


def test_one_flipped_bit_is_damage_although_torch_loads_it(good):
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 4
    good.write_bytes(content)
    torch.load(good, weights_only=True)
    assert "wrong checksum" in run_files.find_damage(str(good))


def test_a_file_of_zeros_and_no_file_are_damaged(good, tmp_path):
    good.write_bytes(bytes(good.stat().st_size))  # what a crash of the machine can leave
    assert run_files.find_damage(str(good))
    assert run_files.find_damage(str(tmp_path / "none.pth")) == "there is no such file"


def touch(folder, *file_names):
    for name in file_names:
        (folder / name).write_text("")


def test_fallbacks_come_from_newest_to_oldest_and_not_from_the_future(tmp_path):
    touch(
        tmp_path, "model_0000002.pth", "model_0000010.pth", "model_0000030.pth", "other.pth", "model_best.pth"
    )
    assert run_files.checkpoints_before(str(tmp_path), "model_0000020.pth") == [
        "model_0000010.pth",
        "model_0000002.pth",
    ]
    touch(tmp_path, "model_final.pth")
    assert run_files.checkpoints_before(str(tmp_path), "model_0000010.pth") == [
        "model_0000002.pth",
        "model_final.pth",
    ]
    assert run_files.checkpoints_before(str(tmp_path), "model_final.pth")[0] == "model_0000030.pth"
    assert "model_final.pth" not in run_files.checkpoints_before(str(tmp_path), "model_final.pth")


def test_old_checkpoints_go_and_the_final_and_newest_ones_stay(tmp_path):
    touch(tmp_path, *(f"model_000000{i}.pth" for i in (1, 3, 5, 7)), "model_final.pth", "mine.pth")
    # 7 is from a run that was given up: the run now stands at 5.
    run_files.remove_old_checkpoints(str(tmp_path), newest=5, keep=2)
    expected = ["mine.pth", "model_0000003.pth", "model_0000005.pth", "model_0000007.pth", "model_final.pth"]
    assert names(tmp_path) == expected
    run_files.remove_old_checkpoints(str(tmp_path), newest=5, keep=1)
    expected.remove("model_0000003.pth")
    assert names(tmp_path) == expected


def test_what_a_killed_process_left_is_removed(tmp_path):
    touch(tmp_path, "model_0000001.pth.tmp", "last_checkpoint.tmp", "model_0000001.pth", "notes.tmp")
    run_files.remove_unfinished(str(tmp_path))
    assert names(tmp_path) == ["model_0000001.pth", "notes.tmp"]


def test_an_output_folder_that_has_vanished_is_made_again_and_said(tmp_path, caplog):
    folder = str(tmp_path / "run")
    with caplog.at_level(logging.ERROR):
        run_files.restore_folder(folder)
        run_files.restore_folder(folder)
    assert os.path.isdir(folder)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith(f"OUTPUT_DIR '{folder}' had vanished")


def test_a_lost_mount_is_not_taken_for_a_removed_folder(tmp_path):
    with pytest.raises(
        run_files.SaveError, match=r"OUTPUT_DIR '.*/lost/run' has vanished and cannot be made again"
    ):
        run_files.restore_folder(str(tmp_path / "lost" / "run"))
    assert not (tmp_path / "lost").exists()
