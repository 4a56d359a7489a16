"""One training step: autocast on any device, full-model gradient clipping, a check before the update."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from updetr_d2.checkpoint.resuming import optimizer_state
from updetr_d2.engine.accumulation import PartSums, gradients_later, split_batch
from updetr_d2.engine.finite_check import FiniteCheck, StepReport
from updetr_d2.engine.preemption import StopSignals
from updetr_d2.engine.step_numbers import StepNumbers, agree, finite
from updetr_d2.engine.step_seed import seed_step

# From model, batch and iteration to weighted losses and further scalars.
TrainingStep = Callable[[nn.Module, list[dict], int], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]


class _Step(NamedTuple):
    """A step whose numbers are still to be looked at."""

    iteration: int
    batch: list[dict]
    numbers: StepNumbers
    error: str
    data_time: float


class _LogEntry(NamedTuple):
    """What one process has to log of a step."""

    iteration: int
    losses: dict[str, float]
    data_time: float


class TrainLoop(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with the step that DETR-style training needs.

    A step has two collective operations beside DDP's: the criterion's, and :func:`.step_numbers.agree`. What is
    logged is exchanged by :meth:`settle`.

    Args:
        model: returns a dict of weighted scalar losses in training; a dict ``training_metrics`` of scalars on
            it, if there is one, is logged beside them.
        data_loader: iterable of batches, with the ``seed`` of the run.
        optimizer: over the parameters of ``model``.
        amp_dtype: autocast type, ``torch.bfloat16`` or ``torch.float16`` (with loss scaling), None for float32.
        max_grad_norm: bound on the gradient norm of the whole model, None for none.
        finite_check: says what happens when a number is not finite; the default stops.
        stop_signals: the processes agree on them with each step.
        compute_losses: called with the model, the batch and the iteration; gives the losses and further scalars to
            log. None calls the model with the batch. It may have a method ``split`` as
            :class:`~updetr_d2.mean_teacher.step.MeanTeacherStep` for parts of batches.
        num_parts: passes that a batch is split into, whose gradients add up to one update.
        late_check: let the device leave out updates from numbers that are not finite, and look at the numbers a
            step later, so that the host does not wait for the device before the next step. Without effect with an
            optimizer that is not fused, and under loss scaling.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float | None = None,
        finite_check: FiniteCheck | None = None,
        stop_signals: StopSignals | None = None,
        compute_losses: TrainingStep | None = None,
        num_parts: int = 1,
        late_check: bool = False,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.amp_dtype = amp_dtype
        self.max_grad_norm = float("inf") if max_grad_norm is None else max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device_type = self.parameters[0].device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)
        self.finite_check = finite_check or FiniteCheck()
        self.stop_signals = stop_signals or StopSignals()
        self.compute_losses = compute_losses or _supervised
        self.num_parts = num_parts
        fused = bool(optimizer.defaults.get("fused"))
        self.late_check = late_check and fused and not self.grad_scaler.is_enabled()
        self.losses_add_up = getattr(self._unwrapped_model(), "losses_add_up", False)
        self._fails_together = getattr(self._unwrapped_model(), "fails_together", False)
        self._unsettled: _Step | None = None
        self._log: list[_LogEntry] = []

    def run_step(self) -> None:
        seed_step(self.data_loader.seed, comm.get_rank(), self.iter)
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        losses, metrics, error = self.compute_gradient(batch)
        flags = None
        if "grad_norm" in metrics:
            # Under loss scaling gradients overflow now and then, and the scaler deals with it.
            unscaled = [] if self.grad_scaler.is_enabled() else [metrics["grad_norm"]]
            flags = agree([*losses.values(), *unscaled], self.stop_signals.received)
        step = _Step(self.iter, batch, StepNumbers(losses, metrics, flags), error or "", data_time)
        self._check_unsettled()
        if self.late_check and flags is not None:
            self.optimizer.found_inf = flags.bad  # as GradScaler tells fused optimizers to leave a step out
            self.optimizer.step()
            self._unsettled = step
            return
        if self._passes(step):
            self.grad_scaler.step(self.optimizer)
        if flags is not None:
            self.grad_scaler.update()
        if comm.get_world_size() == 1:
            self._write_log()

    def settle(self) -> None:
        """Look at the numbers of the last step, if that is to be done, and exchange what is to be logged.

        All processes take part: now and then, and before whatever must not come from a bad step.

        Raises:
            FloatingPointError: as a step does.
        """
        self._check_unsettled()
        self._write_log()

    def _check_unsettled(self) -> None:
        step, self._unsettled = self._unsettled, None
        if step is not None:
            self._passes(step)

    def _unwrapped_model(self) -> nn.Module:
        model: nn.Module = self.model
        return getattr(model, "module", model)

    def compute_gradient(
        self, batch: list[dict]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str | None]:
        """Forward and backward passes of all parts of a batch, and clipping.

        Returns:
            the losses; metrics, among them ``grad_norm`` before clipping, and none if a process has no losses; and
            why this one has none, None if it has.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = PartSums(losses_add_up=self.losses_add_up)
        parts = self._split(batch)
        for number, part in enumerate(parts, start=1):
            with gradients_later(self.model, number < len(parts)):
                losses, metrics, error = self.forward(part)
                # A process without losses has no backward pass, which the others would wait for.
                errors = [error] if self._fails_together else comm.all_gather(error)
                if any(each is not None for each in errors):
                    return losses, {}, error
                sums.add(losses, metrics)
                total = functools.reduce(torch.add, losses.values())
                self.grad_scaler.scale(total if self.losses_add_up else total / len(parts)).backward()
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        return sums.losses(), {**sums.metrics(), "grad_norm": grad_norm}, None

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def _split(self, batch: list[dict]) -> list[list[dict]]:
        """The parts of a batch that go through the model one after the other."""

        def split_samples(samples: list[dict]) -> list[list[dict]]:
            return split_batch(samples, self.num_parts, losses_add_up=self.losses_add_up)

        split = getattr(self.compute_losses, "split", None)
        if split is None or self.num_parts == 1:
            return split_samples(batch)
        with self._autocast():
            parts: list[list[dict]] = split(batch, self.iter, split_samples)
        return parts

    def forward(
        self, samples: list[dict]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str | None]:
        """Losses, metrics and None; or nothing and why the matcher could not work with the numbers.

        The reason is "" where another process could not.
        """
        try:
            with self._autocast():
                losses, metrics = self.compute_losses(self.model, samples, self.iter)
        except FloatingPointError as problem:
            return {}, {}, str(problem)
        return losses, {**getattr(self._unwrapped_model(), "training_metrics", {}), **metrics}, None

    def _passes(self, step: _Step) -> bool:
        """Read the numbers of a step: note what is to be logged, and say whether the update is to be made.

        Raises:
            FloatingPointError: in every process, if a number is not finite and no further step may be left out.
        """
        losses, metrics, bad, self.stop_signals.agreed = step.numbers.read()
        get_event_storage().put_scalars(**finite(metrics), smoothing_hint=True, cur_iter=step.iteration)
        if not bad:
            self._log.append(_LogEntry(step.iteration, losses, step.data_time))
            return True
        checked = {"grad_norm": metrics["grad_norm"]} if "grad_norm" in metrics else {}
        report = StepReport(
            losses=losses,
            checked={} if self.grad_scaler.is_enabled() else checked,
            error=step.error,
            stop_signal=self.stop_signals.received,
            file_names=(),
        )
        if not report.is_finite():
            names = tuple(str(sample.get("file_name")) for sample in step.batch)
            report = report._replace(file_names=names)
        reports = comm.all_gather(report)
        self.stop_signals.agreed = max(each.stop_signal for each in reports)
        self._write_log()  # the run may stop here
        model, seed = self._unwrapped_model(), self.data_loader.seed
        return self.finite_check.passes(reports, step.batch, model, iteration=step.iteration, seed=seed)

    def _write_log(self) -> None:
        """Log the steps so far on the main process; losses are averaged over the processes."""
        logs = comm.gather(self._log)
        self._log = []
        for entries in zip(*logs):
            write_metrics(entries)

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            "parameter_names": self._parameter_names(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_steps": self.finite_check.num_skipped,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint, with the learning rates and weight decays of this run.

        Raises:
            CheckpointError: if the state is of another optimizer or of other parameters.
        """
        optimizer = optimizer_state(
            self.optimizer,
            state_dict["optimizer"],
            names=self._parameter_names(),
            saved_names=state_dict.get("parameter_names"),
        )
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        if state_dict["grad_scaler"]:  # empty of a run without loss scaling
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.finite_check.num_skipped = state_dict.get("skipped_steps", 0)

    def _parameter_names(self) -> list[str]:
        """Of the optimizer's parameters, in its order."""
        names = {parameter: name for name, parameter in self._unwrapped_model().named_parameters()}
        return [names[parameter] for parameter in self.parameters]


def _supervised(
    model: nn.Module, batch: list[dict], iteration: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return model(batch), {}


def write_metrics(entries: tuple[_LogEntry, ...]) -> None:
    """Log the losses of a step of all processes, their mean, and their total."""
    storage, iteration = get_event_storage(), entries[0].iteration
    losses = {name: np.mean([each.losses[name] for each in entries]) for name in entries[0].losses}
    storage.put_scalar("data_time", max(each.data_time for each in entries), cur_iter=iteration)
    storage.put_scalar("total_loss", sum(losses.values()), cur_iter=iteration)
    if len(losses) > 1:
        storage.put_scalars(cur_iter=iteration, **losses)
