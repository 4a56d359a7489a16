"""What a benchmark prints and writes: a table of measurements, and JSON with the environment they come from."""

import json
import os
import platform
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from tabulate import tabulate

from benchmarks.speed.timing import Measurement


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of cores and the kind of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            kind = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()}-core CPU ({kind})"


def environment(device: torch.device) -> dict:
    """Versions, device and number of threads; nothing that names the machine or its user."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def table(measurements: list[Measurement]) -> str:
    """Readable rows; columns that no measurement has are left out."""
    rows = []
    for each in measurements:
        row = {
            "measured": each.name,
            "median ms": f"{1000 * each.median:.1f}",
            "spread": f"{each.spread:.0%}",
            "images/s": _number(each.images_per_second),
            "peak MiB": _number(each.peak_mib),
        }
        if each.reference_seconds:
            reference = each.as_dict()
            row |= {
                "reference ms": f"{1000 * reference['reference_median_s']:.1f}",
                "reference spread": f"{reference['reference_spread']:.0%}",
                "reference MiB": _number(each.reference_peak_mib),
                "times as fast": f"{each.ratio:.2f}",
            }
        rows.append(row | {name: _number(value) for name, value in each.notes.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if any(row.get(name) for row in rows)]
    cells = [[row.get(name, "") for name in names] for row in rows]
    return tabulate(cells, headers=names, colalign=("left",) + ("right",) * (len(names) - 1), tablefmt="pipe")


def write_json(path: Path, *, command: str, device: torch.device, measurements: list[Measurement]) -> None:
    """Write measurements with the environment and what repeats them."""
    report = {
        "command": command,
        "environment": environment(device),
        "measurements": [each.as_dict() for each in measurements],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _number(value: float | int | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
