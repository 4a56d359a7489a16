"""Keep the weights with the best result on held-out images, and end a training that gets no better.

Detectron2's ``BestCheckpointer`` names its file as the last checkpoint, from which ``--resume`` would go on, and
forgets the best result when a run is resumed.
"""

import logging
import math
import os

from detectron2.engine import HookBase
from detectron2.utils import comm

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.checkpoint.run_files import BEST_NAME, SaveError
from updetr_d2.checkpoint.safe_loading import CheckpointError, load_state_file
from updetr_d2.engine.hooks import CheckpointHook

logger = logging.getLogger(__name__)

_ENTRY = "best"


class TrainingIsDone(BaseException):
    """Ends the loop of the training; like SystemExit it is no error."""


class BestCheckpointHook(HookBase):
    """After each evaluation, save the weights if their result is the best; stands after the evaluation.

    What is known of the best result is in its file, so a resumed run compares with it as well.

    Args:
        checkpointer: writes ``model_best.pth``.
        checkpoints: writes the last checkpoint when the training ends early.
        metric: such as "bbox/AP"; higher is better.
        period: iterations between evaluations.
        patience: evaluations without a better result after which the training ends; 0 goes on.
    """

    def __init__(
        self,
        checkpointer: UPDETRCheckpointer,
        checkpoints: CheckpointHook,
        *,
        metric: str,
        period: int,
        patience: int,
    ) -> None:
        self.checkpointer = checkpointer
        self.checkpoints = checkpoints
        self.metric = metric
        self.period = period
        self.patience = patience
        self.best = -math.inf
        self.best_iteration = -1

    def before_train(self) -> None:
        path = os.path.join(self.checkpointer.save_dir, f"{BEST_NAME}.pth")
        if self.trainer.start_iter == 0 or not comm.is_main_process() or not os.path.isfile(path):
            return
        try:
            found = load_state_file(path).get(_ENTRY)
        except CheckpointError as error:
            logger.warning("%s The best result starts anew.", error)
            return
        if isinstance(found, dict) and found.get("metric") == self.metric:
            self.best, self.best_iteration = found["value"], found["iteration"]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period or done >= self.trainer.max_iter:
            return
        stop = False
        if comm.is_main_process():
            self._compare()
            waited = (self.trainer.iter - self.best_iteration) // self.period
            stop = bool(self.patience) and self.best_iteration >= 0 and waited >= self.patience
        if any(comm.all_gather(stop)):
            logger.info(
                "SOLVER.PATIENCE: no better %s in %d evaluations; the training ends after iteration %d.",
                *(self.metric, self.patience, self.trainer.iter),
            )
            self.checkpoints.save_final()
            raise TrainingIsDone

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter and comm.is_main_process():
            self._compare()

    def _compare(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (None, -1))
        if value is None:
            known = [name for name in self.trainer.storage.latest() if "/AP" in name]
            logger.warning(
                "SOLVER.BEST_METRIC '%s' is not among the results; known are %s.",
                *(self.metric, ", ".join(known) or "none"),
            )
            return
        if not value > self.best:  # NaN is not
            logger.info(
                "%s is %.2f; the best is %.2f of iteration %d.",
                *(self.metric, value, self.best, self.best_iteration),
            )
            return
        self.best, self.best_iteration = value, iteration
        entry = {"metric": self.metric, "value": float(value), "iteration": int(iteration)}
        try:
            self.checkpointer.save_weights(BEST_NAME, **{_ENTRY: entry})
        except SaveError as error:
            logger.error("%s Training goes on without the best weights so far.", error)
            return
        logger.info("%s is %.2f, the best so far: saved as %s.pth.", self.metric, value, BEST_NAME)
