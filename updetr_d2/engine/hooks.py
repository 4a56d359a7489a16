"""Training hooks: checkpoints with the position in the data stream, metrics, skipped files."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from updetr_d2.checkpoint import run_files
from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.data.loading.samples import SkippedFiles
from updetr_d2.data.loading.state import BatchLoader, furthest_state
from updetr_d2.report.run_folder import RunFolder
from updetr_d2.report.run_page import PAGE, write_page

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Save a checkpoint periodically and at the end, with every process's position in its data stream.

    A periodic checkpoint that cannot be written does not end a run that may have taken days: the error is
    logged and the next one is tried. The final one, and the one of :meth:`save_now`, must succeed.

    Args:
        checkpointer: writes the files, on the main process.
        period: iterations between checkpoints.
        keep: newest numbered checkpoints that stay; 0 keeps all.
    """

    def __init__(self, checkpointer: UPDETRCheckpointer, period: int, *, keep: int = 0) -> None:
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self._last_saved: int | None = None

    def before_train(self) -> None:
        if comm.is_main_process():
            os.makedirs(self.checkpointer.save_dir, exist_ok=True)
            run_files.remove_unfinished(self.checkpointer.save_dir)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0:
            try:
                self.save_now()
            except run_files.SaveError as error:
                logger.error("%s Training goes on, and the next checkpoint is tried when it is due.", error)
        if done >= self.trainer.max_iter:
            self.save_final()

    def save_final(self) -> None:
        """Save the checkpoint of the end; all processes take part.

        Raises:
            SaveError: on the main process, if it cannot be written.
        """
        self._save(run_files.FINAL_NAME)

    def save_now(self) -> None:
        """Save the checkpoint of the current iteration, unless that has been done; all processes take part.

        Raises:
            SaveError: on the main process, if it cannot be written.
        """
        iteration = self.trainer.iter
        if self._last_saved == iteration:
            return
        self._save(run_files.numbered_name(iteration))
        self._last_saved = iteration
        if self.keep and comm.is_main_process():
            run_files.remove_old_checkpoints(self.checkpointer.save_dir, newest=iteration, keep=self.keep)

    def _save(self, name: str) -> None:
        self.trainer.settle()
        states = comm.gather(self.trainer.data_loader.state_dict())
        if comm.is_main_process():
            run_files.restore_folder(self.checkpointer.save_dir)
        self.checkpointer.save(name, iteration=self.trainer.iter, data_loader=states)

    @staticmethod
    def restore_data_loader(data_loader: BatchLoader, checkpoint: dict) -> None:
        """Set the loader of this process to where the checkpoint left it.

        With another number of processes the streams cannot be continued exactly: the loader starts at the
        furthest position, and a warning says so.
        """
        states = checkpoint.get("data_loader")
        if not states:
            return
        if len(states) == comm.get_world_size():
            data_loader.load_state_dict(states[comm.get_rank()])
            return
        logger.warning(
            "The checkpoint was written by %d processes and %d continue it: the order of the images changes.",
            len(states),
            comm.get_world_size(),
        )
        data_loader.load_state_dict(furthest_state(states))


class SettleHook(HookBase):
    """Have the last steps checked and their metrics brought together; stands before the writer of metrics.

    Args:
        period: iterations between two exchanges of the processes.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done >= self.trainer.max_iter:
            self.trainer.settle()


class MetricsWriter(HookBase):
    """Detectron2's ``PeriodicWriter``; a full disk is logged instead of ending the run.

    Args:
        build_writers: gives the writers, which open their files; called when the training begins.
        period: iterations between two lines.
    """

    def __init__(self, build_writers: Callable[[], list[EventWriter]], *, period: int) -> None:
        self._build_writers = build_writers
        self._period = period
        self._writer = hooks.PeriodicWriter([], period)  # for a training that fails before it begins

    def before_train(self) -> None:
        self._writer = hooks.PeriodicWriter(self._build_writers(), self._period)
        self._writer.trainer = self.trainer

    def after_step(self) -> None:
        self._try(self._writer.after_step)

    def after_train(self) -> None:
        self._try(self._writer.after_train)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            logger.error("Metrics of iteration %d were not written: %s", self.trainer.iter, error)


class ReportHook(HookBase):
    """Keep ``report.html`` of the run up to date; stands after the :class:`MetricsWriter`.

    It is written with the first metrics after an evaluation, and at the end.

    Args:
        output_dir: of the run.
        eval_period: iterations between evaluations; 0 writes at the end only.
        period: of the metrics.
    """

    def __init__(self, output_dir: str, *, eval_period: int, period: int) -> None:
        self.output_dir = output_dir
        self.eval_period = eval_period
        self.period = period
        self._due = False

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self._due |= bool(self.eval_period) and done % self.eval_period == 0
        if self._due and done % self.period == 0 and done < self.trainer.max_iter:
            self._due = False
            write_report(self.output_dir)

    def after_train(self) -> None:
        if not self.trainer.stop_signals.agreed:  # who asks to stop does not wait for a page
            write_report(self.output_dir)


def write_report(output_dir: str) -> None:
    """Write ``report.html`` of a run, on the main process; what goes wrong is only logged."""
    if not comm.is_main_process():
        return
    folder = Path(output_dir)
    path = folder / PAGE
    try:
        write_page({folder.resolve().name: RunFolder.read(folder)}, path)
    except Exception:  # a page that cannot be written must not end a training
        logger.exception("%s was not written; `updetr report` tries it again.", path)
        return
    logger.info("%s shows results, curves, errors and pictures of this run.", path)


class DataTimeAdvice(HookBase):
    """Say in the log, now and then, that the model waits for data, and what to change.

    Args:
        num_workers: ``DATALOADER.NUM_WORKERS``.
        period: iterations between two looks.
    """

    # Waiting for data may take this share of a step.
    allowed_share = 0.1

    def __init__(self, *, num_workers: int, period: int = 1000) -> None:
        self.num_workers = num_workers
        self.period = period
        self._window = min(period, 100)

    def after_step(self) -> None:
        if not comm.is_main_process() or (self.trainer.iter - self._window) % self.period:
            return
        histories = self.trainer.storage.histories()
        if "time" not in histories or "data_time" not in histories:  # every step so far was left out
            return
        waiting, step = (histories[name].median(self._window // 2) for name in ("data_time", "time"))
        if waiting > self.allowed_share * step:
            logger.warning(
                "%.0f %% of the time goes into waiting for data (data_time %.3f s of %.3f s): raise "
                "DATALOADER.NUM_WORKERS (%d) if there are free cores; shards, smaller images on the disk and, in "
                "pre-training on a GPU, INPUT.QUERY_PATCH.ON_DEVICE help as well (docs/PERFORMANCE.md).",
                *(100 * waiting / step, waiting, step, self.num_workers),
            )


class SkippedFilesReport(HookBase):
    """At the end of training, say which files could not be used, in all processes together."""

    def after_train(self) -> None:
        skipped = self.trainer.data_loader.skipped_files
        if self.trainer.iter >= self.trainer.max_iter:  # an aborted run must not wait for the others
            skipped = SkippedFiles.merge(comm.gather(skipped))
        if comm.is_main_process():
            logger.info("Files skipped in training: %s", skipped.summary())
