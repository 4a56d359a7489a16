"""Times and peak memory of functions, measured in turn so that a busy machine slows all of them."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

# Where Linux tells a process how much memory it has, and resets the peak.
_STATUS_FILE = "/proc/self/status"
_RESET_FILE = "/proc/self/clear_refs"


@dataclass
class Measurement:
    """One row of a report.

    Attributes:
        name: what was measured; parts of a whole are written "whole / part".
        seconds: one per repeat.
        reference_seconds: of the straightforward reference, taken in turn with ours; empty if not compared.
        images: images that one run processes, or None where that means nothing.
        peak_mib, reference_peak_mib: memory (MiB) that one run takes on top of what is held already.
        notes: further figures by name.
    """

    name: str
    seconds: list[float]
    reference_seconds: list[float] = field(default_factory=list)
    images: int | None = None
    peak_mib: float | None = None
    reference_peak_mib: float | None = None
    notes: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles of our times as a fraction of their median."""
        return _spread(self.seconds)

    @property
    def images_per_second(self) -> float | None:
        return None if self.images is None else self.images / self.median

    @property
    def ratio(self) -> float | None:
        """How many times the reference's median is ours; None without a reference."""
        return statistics.median(self.reference_seconds) / self.median if self.reference_seconds else None

    def as_dict(self) -> dict:
        """Everything, for a JSON report."""
        reference = self.reference_seconds
        return {
            "name": self.name,
            "median_s": self.median,
            "spread": self.spread,
            "repeats": len(self.seconds),
            "seconds": self.seconds,
            "images_per_s": self.images_per_second,
            "peak_mib": self.peak_mib,
            "reference_median_s": statistics.median(reference) if reference else None,
            "reference_spread": _spread(reference) if reference else None,
            "reference_seconds": reference,
            "reference_peak_mib": self.reference_peak_mib,
            "ratio": self.ratio,
            **self.notes,
        }


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / statistics.median(values)


class Clock:
    """What time is read from: the wall, or the processor's time that this process has used.

    The latter is for CPUs that other programs use as well; with several threads it is the sum over them.

    Args:
        device: waited for before every reading.
        cpu_time: read the processor's time.
    """

    def __init__(self, device: torch.device, *, cpu_time: bool = False) -> None:
        self.device = device
        self._read = time.process_time if cpu_time else time.perf_counter

    def __call__(self) -> float:
        synchronize(self.device)
        return self._read()


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_in_turn(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, clock: Clock
) -> dict[str, list[float]]:
    """Time functions one after the other, round by round.

    Args:
        functions: by name.
        repeats: timed rounds.
        warmup: rounds before them that do not count.
        clock: to read.

    Returns:
        seconds of every repeat by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            start = clock()
            function()
            elapsed = clock() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def peak_memory(function: Callable[[], object], device: torch.device) -> float | None:
    """Memory (MiB) that a run of ``function`` takes at most on top of what is held before it.

    On a GPU it is what tensors take, on a CPU the resident memory of the process.

    Returns:
        None where the system does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - held) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, so that it counts anew
        with open(_RESET_FILE, "w") as file:
            file.write("5")
        before = _resident_mib("VmRSS")
    except (OSError, AttributeError):
        return None
    function()
    return _resident_mib("VmHWM") - before


def _resident_mib(name: str) -> float:
    with open(_STATUS_FILE) as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024
