"""Run trainings as processes of their own, several side by side; what is done is kept, what was killed goes on.

A finished training has a ``done.json`` in its folder, which names the settings it was made with. The process
that runs the trainings may be killed in any way: a training that outlives it is waited for, one that has died
goes on from its checkpoint.
"""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from updetr_d2.comparison.plan import PROPOSALS, Training
from updetr_d2.engine.run_lock import in_use
from updetr_d2.utils.files import write_text
from updetr_d2.utils.processes import training_environment
from updetr_d2.visualization.curves import read_metrics

logger = logging.getLogger(__name__)

DONE = "done.json"
LOG = "console.log"
_POLL_SECONDS = 0.5
_STATUS_SECONDS = 30.0
_TAIL_BYTES = 20_000
# What the last line of a training begins with whose loss was no number any more.
_DIVERGED = "FloatingPointError"


class TrainingError(ValueError):
    """A training that cannot be made, in one sentence."""


class Jobs:
    """Runs trainings, ``jobs`` of them side by side, and says how long the rest will take.

    Args:
        jobs: most trainings at a time.
        threads: of PyTorch for each of them, on a CPU; 0 for its own choice.
        gpus: names for ``CUDA_VISIBLE_DEVICES``; each training gets the next free one. Empty without GPUs.
        total_iterations: of all trainings to come, for the time that is left.
        say: where lines for people go.
        program: that trains, before the arguments of each training.
    """

    def __init__(
        self,
        *,
        jobs: int,
        threads: int,
        gpus: Sequence[str],
        total_iterations: int,
        say: Callable[[str], None] = print,
        program: Sequence[str] = (sys.executable, "-m", "updetr_d2"),
    ) -> None:
        self.program = program
        self.jobs = jobs
        self.threads = threads
        self.slots: SimpleQueue[str] = SimpleQueue()
        for i in range(jobs):
            self.slots.put(gpus[i % len(gpus)] if gpus else "")
        self.say = say
        self.stopping = threading.Event()
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._eta = TimeLeft(total_iterations)
        # Iterations of earlier calls, by the folder of their training.
        self._earlier: dict[Path, int] = {}

    def run(self, trainings: Sequence[Training], described: Callable[[Training], str] | None = None) -> None:
        """Run trainings to their end.

        Args:
            trainings: in the order of their start; those done before are skipped.
            described: what to say about a finished one, beside its title.

        Raises:
            TrainingError: if one fails otherwise than by diverging; the others are stopped first.
        """
        pending = []
        for training in trainings:
            done = is_done(training)
            self._earlier[training.folder] = training.iterations if done else iterations_done(training)
            self._eta.skip(self._earlier[training.folder])
            if not done:
                pending.append(training)
        if len(pending) < len(trainings):
            self.say(f"{len(trainings) - len(pending)} of {len(trainings)} trainings were done before.")
        with ThreadPoolExecutor(self.jobs) as executor:
            started = {executor.submit(self._run_one, training): training for training in pending}
            try:
                self._watch(started, described)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def run_more(
        self, trainings: Sequence[Training], described: Callable[[Training], str] | None = None
    ) -> None:
        """As :meth:`run`, for trainings that ``total_iterations`` does not count."""
        if trainings:
            self._eta.skip(-sum(each.iterations for each in trainings))
            self.run(trainings, described)

    def _watch(self, started: dict[Future, Training], described: Callable[[Training], str] | None) -> None:
        waiting = set(started)
        told = time.monotonic()
        while waiting:
            finished, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            running = [started[future] for future in waiting if future.running()]
            for future in finished:
                training = started[future]
                future.result()
                self._eta.add(training.iterations - self._earlier[training.folder])
                self._eta.running = self._done_now(running)
                result = described(training) if described else "done"
                self.say(f"{training.title}: {result}; {self._eta.sentence()}")
                told = time.monotonic()
            if waiting and time.monotonic() - told > _STATUS_SECONDS:
                self._eta.running = self._done_now(running)
                self.say(f"  {', '.join(each.title for each in running)} ... {self._eta.sentence()}")
                told = time.monotonic()
        self._eta.running = 0

    def _done_now(self, running: Sequence[Training]) -> int:
        """Iterations of this call that trainings have behind them which are not done yet."""
        return sum(max(0, iterations_done(each) - self._earlier[each.folder]) for each in running)

    def _run_one(self, training: Training) -> None:
        slot = self.slots.get()
        try:
            while any(in_use(str(each)) for each in training.locked_folders) and not self.stopping.is_set():
                time.sleep(_POLL_SECONDS)  # of a comparison that was killed: its training goes on by itself
            if is_finished(training):
                mark_done(training)
            elif not self.stopping.is_set():
                self._train(training, slot)
        finally:
            self.slots.put(slot)

    def _train(self, training: Training, gpu: str) -> None:
        training.folder.mkdir(parents=True, exist_ok=True)
        calls = [training.command]
        if training.proposals and not (training.folder / PROPOSALS).is_file():
            calls.insert(0, list(training.proposals))
        status = 0
        for command in calls:
            status = status or self._call(command, training.folder / LOG, gpu)
        if self.stopping.is_set():
            return
        if status == 0:
            mark_done(training)
            return
        reason = last_line(training.folder / LOG) or f"exit status {status}"
        if status < 0 or not training.may_diverge or not reason.startswith(_DIVERGED):
            raise TrainingError(
                f"{training.title} has ended with status {status} ({reason}); {training.folder / LOG} says more. "
                "The same command goes on from here."
            )
        logger.warning("%s has diverged (%s).", training.title, reason)
        mark_done(training, failure=reason)

    def _call(self, command: Sequence[str], log_path: Path, gpu: str) -> int:
        """Exit status of a call of ``updetr``, which is not made any more once all are to stop."""
        with open(log_path, "ab") as log:
            with self._lock:
                if self.stopping.is_set():
                    return 0
                process = subprocess.Popen(
                    [*self.program, *command],
                    # Ctrl-C goes to this process alone, which asks once for a checkpoint.
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=training_environment(threads=self.threads, gpu=gpu),
                )
                self._processes.add(process)
            status = process.wait()
        with self._lock:
            self._processes.discard(process)
        return status

    def stop(self) -> None:
        """Ask all trainings to save a checkpoint and end, and wait for them."""
        with self._lock:
            self.stopping.set()
            processes = list(self._processes)
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        for process in processes:
            process.wait()


class TimeLeft:
    """How long iterations that are still to come will take, at the speed of this call."""

    def __init__(self, total: int) -> None:
        self.remaining = total
        self.running = 0
        self._done = 0
        self._began = time.monotonic()

    def skip(self, iterations: int) -> None:
        """Count iterations of an earlier call."""
        self.remaining -= iterations

    def add(self, iterations: int) -> None:
        """Count iterations of a training that has come to its end."""
        self.remaining -= iterations
        self._done += iterations

    def sentence(self) -> str:
        done = self._done + self.running
        if not done or self.remaining - self.running <= 0:
            return "time left unknown" if self.remaining > 0 else "all done"
        seconds = (time.monotonic() - self._began) / done * (self.remaining - self.running)
        return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """In words, for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def is_done(training: Training) -> bool:
    """Whether a training was finished before.

    Raises:
        TrainingError: if that was with other settings.
    """
    record = read_done(training)
    if record is None:
        return False
    if record.get("command") != training.command:
        raise TrainingError(
            f"{training.folder} was made with other settings; give those of before, another --output, or delete "
            "that folder."
        )
    return True


def read_done(training: Training) -> dict | None:
    """What :func:`mark_done` has written; None if there is nothing that can be read."""
    try:
        record = json.loads((training.folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def mark_done(training: Training, *, failure: str = "") -> None:
    """Write the marker; ``failure`` says why there is no result."""
    record = {"command": training.command, "failure": failure}
    write_text(training.folder / DONE, json.dumps(record, indent=1))


def is_finished(training: Training) -> bool:
    """Whether a training has come to its end, its evaluation included, while nobody wrote the marker."""
    if not (training.folder / "model_final.pth").is_file():
        return False
    if not training.evaluated:
        return True
    try:
        curves = read_metrics(training.folder / "metrics.json")
    except ValueError:
        return False
    return training.iterations in curves.get(f"{training.metric_prefix}bbox/AP", {})


def iterations_done(training: Training) -> int:
    """As far as a training has logged."""
    for line in reversed(_tail(training.folder / "metrics.json").splitlines()):
        with suppress(ValueError, KeyError, TypeError):
            return min(int(json.loads(line)["iteration"]) + 1, training.iterations)
    return 0


def last_line(path: Path) -> str:
    """The last line of a log that says something, in most cases that of an exception."""
    lines = [line.strip() for line in _tail(path).splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
