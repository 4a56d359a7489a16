"""No update from numbers that are not finite: stop, or leave the step out, in all processes alike."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.utils import comm
from torch import nn

from updetr_d2.checkpoint.run_files import SaveError
from updetr_d2.engine.bad_batches import save_bad_batch, save_weights

logger = logging.getLogger(__name__)


class StepReport(NamedTuple):
    """What one process tells the others about its step.

    Attributes:
        losses: weighted losses by name; empty if the model gave none.
        checked: numbers beside the losses that must be finite; the same in all processes.
        error: why the model gave no losses, "" if it did.
        stop_signal: number of the signal to stop that the process has received, 0 for none.
        file_names: of the batch, only if a number is not finite.
    """

    losses: dict[str, float]
    checked: dict[str, float]
    error: str
    stop_signal: int
    file_names: tuple[str, ...]

    def problem(self) -> str:
        """The losses of this process that are not finite, or why there are none; "" if all is well."""
        return self.error or _not_finite(self.losses)

    def is_finite(self) -> bool:
        return not self.problem() and not _not_finite(self.checked)


class FiniteCheck:
    """Decides after the backward pass whether the optimizer may use the gradients.

    Args:
        output_dir: of the run; "" saves no batches.
        max_skipped: steps of the run that are left out; one more stops it.

    Attributes:
        num_skipped: steps left out so far.
    """

    def __init__(self, *, output_dir: str = "", max_skipped: int = 0) -> None:
        self.output_dir = output_dir
        self.max_skipped = max_skipped
        self.num_skipped = 0

    def passes(
        self, reports: list[StepReport], batch: list[dict], model: nn.Module, *, iteration: int, seed: int
    ) -> bool:
        """Decide from the reports of all processes, in the order of their ranks.

        Args:
            reports: the same in all processes, so that all decide the same.
            batch: of this process; saved if its losses are not finite or, if all losses are, with the others.
            model: with the weights before the update; saved if the run stops.
            iteration: of the step.
            seed: of the run.

        Returns:
            True to update the weights, False to leave the step out.

        Raises:
            FloatingPointError: in every process, if no further step may be left out.
        """
        problems = {rank: report.problem() for rank, report in enumerate(reports)}
        gradient = _not_finite(reports[0].checked)
        if not gradient and not any(problems.values()):
            return True
        guilty = [rank for rank, problem in problems.items() if problem] or list(problems)
        self.num_skipped += 1
        stops = self.num_skipped > self.max_skipped
        rank = comm.get_rank()
        if self.output_dir and rank in guilty:
            scalars = {**reports[rank].losses, **reports[rank].checked}
            _try_to_save(
                save_bad_batch,
                self.output_dir,
                batch,
                **{"iteration": iteration, "rank": rank, "seed": seed, "scalars": scalars},
            )
        if self.output_dir and stops and comm.is_main_process():
            _try_to_save(save_weights, self.output_dir, model, iteration=iteration)
        who = "; ".join(
            f"process {rank}: {problems[rank] or gradient}, of {', '.join(reports[rank].file_names)}"
            for rank in guilty
        )
        message = f"Iteration {iteration} is not finite ({who})."
        if stops:
            saved = f" The batch is saved in {self.output_dir}/bad_batches." if self.output_dir else ""
            raise FloatingPointError(
                f"{message}{saved} No weight was changed by it; docs/RELIABILITY.md says how to run it again. "
                f"{self.max_skipped} such steps may be left out (SOLVER.SKIP_NONFINITE_STEPS)."
            )
        logger.warning(
            "%s Left out, as %d of at most %d (SOLVER.SKIP_NONFINITE_STEPS).",
            message,
            self.num_skipped,
            self.max_skipped,
        )
        return False


def _not_finite(scalars: dict[str, float]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in scalars.items() if not math.isfinite(value))


def _try_to_save(save: Callable[..., str], *args: Any, **kwargs: Any) -> None:
    """Save for reproduction; failing to do so must not hide why the run stops."""
    try:
        logger.warning("Saved %s", save(*args, **kwargs))
    except (SaveError, OSError) as error:
        logger.error("%s", error)
