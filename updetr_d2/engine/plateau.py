"""What follows from results that get no better: the learning rate falls, and parameters that were held back learn.

The rest of a training is derived from the results so far, which stand in a small file beside the checkpoints.
A resumed run reads them, so that it goes on as one that was never interrupted.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from updetr_d2.utils.files import write_text

__all__ = ["HeldParameters", "PlateauHook", "count_plateaus"]

logger = logging.getLogger(__name__)

RESULTS_NAME = "plateau_results.json"


def count_plateaus(results: Sequence[float], patience: Sequence[int]) -> int:
    """How many plateaus there have been.

    A plateau is reached when so many evaluations since the best result, or since the last plateau, were no better.

    Args:
        results: of all evaluations so far, in their order; higher is better, NaN is never.
        patience: evaluations of the first plateau, of the second, ...; the last one holds for all later ones.
    """
    best, waited, plateaus = float("-inf"), 0, 0
    for result in results:
        waited = 0 if result > best else waited + 1
        best = max(best, result) if result == result else best
        if waited >= patience[min(plateaus, len(patience) - 1)]:
            plateaus, waited = plateaus + 1, 0
    return plateaus


class HeldParameters(HookBase):
    """Keeps parameters as they are, without gradients, until they are released; for the inner loop of the trainer.

    Their gradients are dropped after the backward pass, before clipping. So the processes of a distributed
    training exchange the same tensors all the time.

    Args:
        model: that trains.
        parts: parts of the names of the parameters.
        iterations: after which they learn; 0 waits for :meth:`release`.

    Raises:
        ValueError: if a part is in no name of a parameter that trains.
    """

    def __init__(self, model: nn.Module, parts: Sequence[str], iterations: int = 0) -> None:
        trained = [
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        for part in parts:
            if not any(part in name for name, _ in trained):
                raise ValueError(
                    f"SOLVER.HELD_PARAMETERS names '{part}', which is in no name of a parameter that trains; "
                    "take it out."
                )
        self.parameters = [parameter for name, parameter in trained if any(part in name for part in parts)]
        if len(self.parameters) == len(trained):
            raise ValueError(
                f"SOLVER.HELD_PARAMETERS {tuple(parts)} holds every parameter: leave some to train."
            )
        self.iterations = iterations
        self.released = False

    def release(self) -> None:
        """Let them learn from the next step on."""
        self.released = True

    def after_backward(self) -> None:
        if self.released or (self.iterations and self.trainer.iter >= self.iterations):
            return
        for parameter in self.parameters:
            parameter.grad = None


class PlateauHook(HookBase):
    """After each evaluation, lower the learning rates on a plateau; stands after the evaluation.

    While there are held parameters that wait for it, the first plateau releases them instead.

    Args:
        output_dir: keeps the results.
        metric: such as "bbox/AP"; higher is better.
        period: iterations between evaluations.
        patience: as for :func:`count_plateaus`.
        factor: of the learning rates on each plateau, in (0, 1).
        least: of the learning rates as a share of what the schedule says, in [0, 1].
        held: wait for the first plateau.
        evaluate: gives the results of an evaluation that an interrupted run has not come to.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        metric: str,
        period: int,
        patience: Sequence[int],
        factor: float,
        least: float,
        held: HeldParameters | None,
        evaluate: Callable[[], dict],
    ) -> None:
        self.path = os.path.join(output_dir, RESULTS_NAME)
        self.metric = metric
        self.period = period
        self.patience = patience
        self.factor = factor
        self.least = least
        self.held = held if held is not None and not held.iterations else None
        self.evaluate = evaluate
        self.results: dict[int, float] = {}

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if done == 0:
            return
        self.results = {i: value for i, value in self._read().items() if i < done}
        if done % self.period == 0 and done - 1 not in self.results:
            # It was stopped between the checkpoint and the end of its evaluation.
            self._note(done - 1, flatten_results_dict(self.evaluate()).get(self.metric))
        self._apply(announce=False)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period or done >= self.trainer.max_iter:
            return
        value, iteration = self.trainer.storage.latest().get(self.metric, (None, -1))
        self._note(self.trainer.iter, value if iteration == self.trainer.iter else None)
        self._apply(announce=True)

    def _read(self) -> dict[int, float]:
        """The results that the main process finds in its file, for all processes."""
        found: dict[int, float] = {}
        if comm.is_main_process() and os.path.isfile(self.path):
            try:
                with open(self.path, encoding="utf-8") as file:
                    entries = json.load(file)
                if entries["metric"] == self.metric:
                    found = {int(iteration): float(value) for iteration, value in entries["results"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s cannot be read (%s); plateaus are counted anew.", self.path, error)
        return comm.all_gather(found)[0]

    def _note(self, iteration: int, value: float | None) -> None:
        """Remember a result, of the main process; one that is not there counts as no better."""
        self.results[iteration] = comm.all_gather(float("nan") if value is None else float(value))[0]
        if comm.is_main_process():
            try:
                write_text(self.path, json.dumps({"metric": self.metric, "results": self.results}))
            except OSError as error:
                logger.error(
                    "%s cannot be written (%s); --resume will count plateaus without it.", self.path, error
                )

    def _apply(self, *, announce: bool) -> None:
        """Set the learning rates, and release what was held, by the results so far."""
        plateaus = count_plateaus(list(self.results.values()), self.patience)
        reductions = plateaus
        if self.held is not None and plateaus:
            reductions -= 1
            if not self.held.released:
                self.held.release()
                logger.info("%s is on a plateau: all parameters learn from now on.", self.metric)
        share = max(self.factor**reductions, self.least)
        scheduler = self.trainer.scheduler
        groups = self.trainer.optimizer.param_groups
        rates = [group["initial_lr"] * share for group in groups]
        if rates == scheduler.base_lrs:
            return
        scheduler.base_lrs = rates
        for group, rate in zip(groups, scheduler.get_lr()):
            group["lr"] = rate
        if announce:
            logger.info("%s is on a plateau: learning rates are %.3g of the schedule's.", self.metric, share)
