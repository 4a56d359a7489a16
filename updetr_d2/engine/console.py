"""A line that a person can read, on the console; the log file keeps Detectron2's with every loss."""

import datetime
import logging
import sys
from collections.abc import Mapping

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

# Detectron2's CommonMetricPrinter writes to it; this line stands on the console in its place.
_FULL_LINES = "detectron2.utils.events"
# Results that say most, by the end of their names, in the order of preference.
_MAIN_RESULTS = ("bbox/AP", "query_patch/AP", "oneshot/unseen_AP50", "class_agnostic/AP", "panoptic_seg/PQ")
_WINDOW = 20  # iterations whose median counts

logger = logging.getLogger(__name__)


class ConsolePrinter(EventWriter):
    """Iteration, total loss, the main result of the last evaluation, learning rate, images/s, ETA, memory on CUDA.

    It stands behind Detectron2's ``CommonMetricPrinter``, which measures the ETA, and takes the lines of that one
    off the console.

    Args:
        max_iter: of the run.
        images_per_step: of all processes.
        metric: the result to show, such as "bbox/AP"; "" for the first that says most.
    """

    def __init__(self, max_iter: int, *, images_per_step: int, metric: str = "") -> None:
        self.max_iter = max_iter
        self.images_per_step = images_per_step
        self.metric = metric
        for handler in logging.getLogger("detectron2").handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.addFilter(_leave_out_full_lines)

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter < self.max_iter:  # at the end it is called once more, after the last line
            logger.info(self.line(storage))

    def line(self, storage: EventStorage) -> str:
        """What is known of the iterations so far."""
        latest = {name: value for name, (value, _) in storage.latest().items()}
        parts = [f"iteration {storage.iter + 1} of {self.max_iter}"]
        if "total_loss" in latest:
            parts.append(f"loss {_median(storage, 'total_loss'):.4g}")
        name = self.metric if self.metric in latest else main_result(latest)
        if name:
            parts.append(f"{'/'.join(name.split('/')[-2:])} {latest[name]:.1f}")
        if "lr" in latest:
            parts.append(f"lr {latest['lr']:.2g}")
        if "time" in latest:
            parts.append(f"{self.images_per_step / max(_median(storage, 'time'), 1e-9):.3g} images/s")
        if "eta_seconds" in latest:
            parts.append(f"{datetime.timedelta(seconds=int(latest['eta_seconds']))} left")
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return ", ".join(parts)


def main_result(latest: Mapping[str, float]) -> str:
    """The name of the result that says most; "" before the first evaluation."""
    for end in _MAIN_RESULTS:
        for name in latest:
            if name == end or name.endswith(f"/{end}"):
                return name
    return ""


def _median(storage: EventStorage, name: str) -> float:
    return storage.history(name).median(_WINDOW)


def _leave_out_full_lines(record: logging.LogRecord) -> bool:
    return record.name != _FULL_LINES
