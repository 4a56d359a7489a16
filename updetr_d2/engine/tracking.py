"""Metrics for W&B and MLflow, beside the log, ``metrics.json`` and TensorBoard.

A thread of its own sends them, so that a server that is slow or away costs the training neither time nor its life.
"""

import json
import logging
import math
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from detectron2.utils.events import EventWriter, get_event_storage

from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)

RUNS_FILE = "tracking.json"
# What waits for the server: a day of lines every 20 iterations of 0.5 s; later ones are left out.
_LONGEST_QUEUE = 10_000
_WINDOW = 20  # iterations whose median is written, as in metrics.json
_SECONDS_AT_END = 60.0


class Tracker(ABC):
    """A service that keeps the metrics of runs. Every method may raise anything."""

    name: str = ""

    @abstractmethod
    def start(self, run_id: str | None) -> str:
        """Begin a run, or go on with that of an id.

        Returns:
            the run's id.
        """

    @abstractmethod
    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Send the finite values of an iteration."""

    @abstractmethod
    def finish(self) -> None:
        """The run is over."""


class TrackingWriter(EventWriter):
    """Gives the metrics that are new to a tracker; what goes wrong there is said once in the log.

    Args:
        tracker: of the service.
        output_dir: keeps the id of the run, with which a resumed training goes on.
        resumed: whether the training has been resumed; asked at the first write.
    """

    def __init__(self, tracker: Tracker, output_dir: str, *, resumed: Callable[[], bool]) -> None:
        self.tracker = tracker
        self.output_dir = output_dir
        self.resumed = resumed
        self._last_written = -1
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_LONGEST_QUEUE)
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_written and math.isfinite(value):
                by_iteration.setdefault(iteration, {})[name] = float(value)
        for iteration, scalars in sorted(by_iteration.items()):
            self._last_written = iteration
            self._put((iteration, scalars))

    def close(self) -> None:
        """Send what waits, for a minute at most."""
        if self._thread is None:
            return
        self._put(None)
        self._thread.join(_SECONDS_AT_END)
        if self._thread.is_alive():
            self._tell(f"it did not take the last metrics within {_SECONDS_AT_END:g} s")

    def _put(self, item: tuple[int, dict[str, float]] | None) -> None:
        if self._thread is None:
            run_id = read_run_id(self.output_dir, self.tracker.name) if self.resumed() else None
            self._thread = threading.Thread(target=self._send, args=(run_id,), daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._tell("it is so far behind that metrics are left out")

    def _send(self, run_id: str | None) -> None:
        try:
            write_run_id(self.output_dir, self.tracker.name, self.tracker.start(run_id))
        except Exception as error:  # a service can fail in any way, and the training goes on
            self._tell(f"the run could not be started ({type(error).__name__}: {error})")
            return
        while (item := self._waiting.get()) is not None:
            self._try(self.tracker.log, *item)
        self._try(self.tracker.finish)

    def _try(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as error:  # likewise
            self._tell(f"{type(error).__name__}: {error}")

    def _tell(self, problem: str) -> None:
        """Once of each kind of problem."""
        if (kind := problem.partition(":")[0]) not in self._told:
            self._told.add(kind)
            logger.warning(
                "TRACKING.WRITERS %s: %s. Training goes on, and metrics.json has everything.",
                *(self.tracker.name, " ".join(problem.split())),
            )


def read_run_id(output_dir: str, name: str) -> str | None:
    """The id by which a service knows the run of a folder; None if it does not."""
    try:
        with open(os.path.join(output_dir, RUNS_FILE), encoding="utf-8") as file:
            found = json.load(file)[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


_runs_file_lock = threading.Lock()


def write_run_id(output_dir: str, name: str, run_id: str) -> None:
    """Keep it beside those of other services."""
    path = os.path.join(output_dir, RUNS_FILE)
    with _runs_file_lock:
        try:
            with open(path, encoding="utf-8") as file:
                runs = json.load(file)
        except (OSError, ValueError):
            runs = {}
        write_text(path, json.dumps({**(runs if isinstance(runs, dict) else {}), name: run_id}))
