"""SIGTERM and SIGINT end a run after the current step, with a checkpoint and an exit code that says so."""

import logging
import mmap
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import get_worker_info

from updetr_d2.engine.hooks import CheckpointHook

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Exit code of a run that has saved a checkpoint and stopped: "temporary failure, try again" of sysexits.h.
# Unlike 128 + signal it cannot be mistaken for a process that was killed.
STOPPED_EXIT_CODE = 75
# The same signal within this time (s) is the same request: a terminal and a launcher both pass on Ctrl-C.
_SAME_REQUEST = 1.0


class StopSignals:
    """Context in which the first signal of :data:`STOP_SIGNALS` is only noted; a second one ends the process.

    Loader workers that are forked inside ignore the signals: a cluster sends them to every process, and the
    step needs its workers to finish. To other forked processes the signals do what they do by default.

    Attributes:
        received: number of the signal that this process has got, 0 before.
        agreed: number of the signal that all processes know of, set by the training loop; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = 0
        self._time = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._process = os.getpid()
            self._open = mmap.mmap(-1, 1)  # shared with the workers
            self._open[0] = 1
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Let signals do what they did before, in the workers as well."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            self._open[0] = 0
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if get_worker_info() is None:  # a library's process, which waits for its end if it ends it
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            elif not self._open[0]:
                # The training process ends its workers; dying of the signal would be an error to it.
                os._exit(0)
            return
        now = time.monotonic()
        if self.received and now - self._time > _SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.received:
            self.received, self._time = int(number), now
            if comm.is_main_process():
                name = signal.Signals(number).name  # logging is not safe in a signal handler
                os.write(2, f"{name}: saving a checkpoint after this step; again stops at once.\n".encode())


class PreemptionHook(HookBase):
    """Once a stop signal is agreed on, save a checkpoint and exit; stands after the :class:`CheckpointHook`.

    Args:
        stop_signals: of the training loop.
        checkpoints: saves.
    """

    def __init__(self, stop_signals: StopSignals, checkpoints: CheckpointHook) -> None:
        self.stop_signals = stop_signals
        self.checkpoints = checkpoints

    def after_step(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.stop_signals.restore()  # the final checkpoint is there: nothing to save any more
        elif self.stop_signals.agreed:
            self.checkpoints.save_now()
            comm.synchronize()  # a launcher ends all processes when the first one exits
            logger.info(
                "Stopped by %s after iteration %d with a checkpoint: --resume goes on.",
                signal.Signals(self.stop_signals.agreed).name,
                self.trainer.iter,
            )
            raise SystemExit(STOPPED_EXIT_CODE)
