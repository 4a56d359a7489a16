"""What reading one image file may cost, and how odd kinds are read."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from detectron2.config import CfgNode

# What Pillow opens without calling it a decompression bomb.
LARGEST_MAX_PIXELS = 178_956_970


class DecodingTimeoutError(Exception):
    """Decoding a file took longer than its time limit. No OSError: trying again would take as long."""


@dataclass(frozen=True)
class ReadOptions:
    """How image files are read; the keys and their reasons stand in ``config/input_defaults.py``.

    Attributes:
        max_pixels: images with more pixels are refused (``INPUT.MAX_PIXELS``).
        read_gif: whether GIF files are read (``INPUT.READ_GIF``).
        time_limit: seconds that decoding may take; 0 is no limit (``INPUT.DECODE_TIME_LIMIT``).
        gray_bits: bits that the values of 16-bit gray files use (``INPUT.GRAY_BITS``).
    """

    max_pixels: int = 100_000_000
    read_gif: bool = False
    time_limit: float = 60.0
    gray_bits: int = 16

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ReadOptions":
        return cls(
            max_pixels=cfg.INPUT.MAX_PIXELS,
            read_gif=cfg.INPUT.READ_GIF,
            time_limit=cfg.INPUT.DECODE_TIME_LIMIT,
            gray_bits=cfg.INPUT.GRAY_BITS,
        )


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`DecodingTimeoutError` in the context once it has taken too long.

    A timer of the system does it, between two instructions of Python: a call of C code ends first. Threads other
    than the main one get no signals and have no limit; loader workers decode in their main thread.

    Args:
        seconds: 0 is no limit.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise DecodingTimeoutError(f"decoding took more than INPUT.DECODE_TIME_LIMIT = {seconds:g} s")

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    other_delay, other_interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if other_delay:  # somebody else's alarm goes on
            left = max(other_delay - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, other_interval)
