"""Video files, frame by frame, through OpenCV."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from updetr_d2.utils.files import refuse_special_file

_USUAL_FPS = 25.0
_HIGHEST_FPS = 1000.0  # more is a damaged header


class VideoError(ValueError):
    """A video that cannot be used; the message names it."""


class Video:
    """A video file that can be read.

    Args:
        path: of the file.
        every: 1 for all frames, N for every Nth.
        max_pixels: of a frame.

    Attributes:
        fps: frames a second of those that are given.
        num_frames: how many the file says they are; 0 if it does not.

    Raises:
        VideoError: if OpenCV reads no frame of it, or its frames are too large.
        OSError: if there is no such file.
    """

    def __init__(self, path: str, *, every: int = 1, max_pixels: int | None = None) -> None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no video {path}.")
        refuse_special_file(path)
        self.path = path
        self.every = every
        capture = cv2.VideoCapture(path)
        try:
            _, frame = capture.read()
            if frame is None:
                raise VideoError(f"{path} is empty, damaged or no video: OpenCV reads no frame of it.")
            height, width = frame.shape[:2]
            if max_pixels is not None and height * width > max_pixels:
                raise VideoError(
                    f"{path} has frames of {width} x {height} px, more than INPUT.MAX_PIXELS = {max_pixels}."
                )
            fps = capture.get(cv2.CAP_PROP_FPS)
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        finally:
            capture.release()
        self.fps = (fps if 0 < fps <= _HIGHEST_FPS else _USUAL_FPS) / every
        self.num_frames = max(0, math.ceil(count / every)) if math.isfinite(count) else 0

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number in the file, from 0, and RGB uint8 ``[H, W, 3]`` of each frame that can be read."""
        capture = cv2.VideoCapture(self.path)
        try:
            number = 0
            while capture.grab():
                if number % self.every == 0:
                    found, frame = capture.retrieve()
                    if not found:
                        return
                    yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                number += 1
        finally:
            capture.release()


@contextlib.contextmanager
def writing(path: Path, *, fps: float) -> Iterator["Frames"]:
    """Write an MP4 file; its folder is made.

    Args:
        path: of the file.
        fps: frames a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = Frames(path, fps)
    try:
        yield frames
    finally:
        frames.close()


class Frames:
    """The frames of a video that is being written; all get the size of the first.

    Raises:
        VideoError: with the first frame, if the file cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def add(self, picture: np.ndarray) -> None:
        """RGB uint8 ``[H, W, 3]``."""
        if self._writer is None:
            height, width = picture.shape[:2]
            self._size = (width, height)
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, self._size)
            if not self._writer.isOpened():
                raise VideoError(f"{self.path} cannot be written by OpenCV: is the folder writable?")
        if picture.shape[1::-1] != self._size:
            picture = cv2.resize(picture, self._size)
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
