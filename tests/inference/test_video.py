"""Videos: every frame once in its order and colors; what is no video is said in a sentence."""

import numpy as np
import pytest

from updetr_d2.inference import video
from updetr_d2.inference.video import Video, VideoError, writing

COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200)]


@pytest.fixture(name="clip")
def _clip(tmp_path):
    """Five frames of a color each, 10 a second."""
    with writing(tmp_path / "videos/clip.mp4", fps=10) as frames:
        for color in COLORS:
            frames.add(np.full((48, 64, 3), color, dtype=np.uint8))
    return tmp_path / "videos/clip.mp4"


def color_of(frame):
    return frame[8:40, 8:56].reshape(-1, 3).mean(axis=0)


def test_frames_come_back(clip):
    read = Video(str(clip))
    assert (read.fps, read.num_frames) == (10, 5)
    frames = list(read.frames())
    assert [number for number, _ in frames] == list(range(5))
    for (_, frame), color in zip(frames, COLORS, strict=True):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(color_of(frame) - color).max() < 20


@pytest.mark.parametrize(("every", "numbers"), [(2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_frames_may_be_left_out(clip, every, numbers):
    read = Video(str(clip), every=every)
    assert read.num_frames == len(numbers) and read.fps == pytest.approx(10 / every)
    frames = list(read.frames())
    assert [number for number, _ in frames] == numbers
    assert np.abs(color_of(frames[-1][1]) - COLORS[numbers[-1]]).max() < 20


def test_all_frames_get_the_size_of_the_first(tmp_path):
    with writing(tmp_path / "a.mp4", fps=5) as frames:
        frames.add(np.zeros((48, 64, 3), np.uint8))
        frames.add(np.full((24, 24, 3), 200, np.uint8))
    shapes = [frame.shape for _, frame in Video(str(tmp_path / "a.mp4")).frames()]
    assert shapes == [(48, 64, 3)] * 2


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\x00\x00\x00\x18ftypmp42" + b"\0" * 500])
def test_what_is_no_video_is_named(tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"bad\.mp4 is empty, damaged or no video"):
        Video(str(tmp_path / "bad.mp4"))


def test_a_video_that_is_cut_off_gives_what_it_has_or_is_refused(clip):
    content = clip.read_bytes()
    for share in (0.3, 0.6, 0.9):
        clip.write_bytes(content[: int(share * len(content))])
        try:
            frames = list(Video(str(clip)).frames())
        except VideoError:
            continue
        assert 1 <= len(frames) <= 5


def test_no_file_a_folder_and_large_frames(tmp_path, clip):
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no video"):
            Video(str(path))
    with pytest.raises(VideoError, match=r"64 x 48 px, more than INPUT\.MAX_PIXELS = 100"):
        Video(str(clip), max_pixels=100)


def test_a_rate_of_nonsense_is_the_usual_one(clip, monkeypatch):
    monkeypatch.setattr(video, "_HIGHEST_FPS", 5.0)
    assert Video(str(clip)).fps == 25


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with (
        pytest.raises(VideoError, match=r"a\.mp4 cannot be written"),
        writing(tmp_path / "a.mp4", fps=5) as frames,
    ):
        frames.add(np.zeros((16, 16, 3), np.uint8))
