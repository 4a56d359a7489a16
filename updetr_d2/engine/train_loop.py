"""One training step: autocast on any device, full-model gradient clipping, a check before the update."""

import functools
import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from updetr_d2.checkpoint.resuming import optimizer_state
from updetr_d2.engine.finite_check import FiniteCheck, StepReport
from updetr_d2.engine.preemption import StopSignals
from updetr_d2.engine.step_seed import seed_step

# From model, batch and iteration to weighted losses and further scalars.
TrainingStep = Callable[[nn.Module, list[dict], int], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]


class TrainLoop(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with the step that DETR-style training needs.

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
            log. None calls the model with the batch.
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

    def run_step(self) -> None:
        seed_step(self.data_loader.seed, comm.get_rank(), self.iter)
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        error = ""
        losses: dict[str, torch.Tensor] = {}
        metrics: dict[str, torch.Tensor] = {}
        try:
            with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                losses, metrics = self.compute_losses(self.model, batch, self.iter)
        except FloatingPointError as problem:  # the matcher cannot work with such numbers
            error = str(problem)
        # A process without losses has no backward pass, which the others would wait for.
        has_gradient = not any(comm.all_gather(error))
        if has_gradient:
            grad_norm = self.compute_gradient(losses)
            own = getattr(self._unwrapped_model(), "training_metrics", {})
            metrics = {**own, **metrics, "grad_norm": grad_norm}
        else:
            metrics = {}
        reports = self.exchange_reports(batch, losses, metrics, error, data_time)
        passes = self.finite_check.passes(
            reports, batch, self._unwrapped_model(), iteration=self.iter, seed=self.data_loader.seed
        )
        if passes:
            write_metrics(reports, self.iter)
            self.grad_scaler.step(self.optimizer)
        if has_gradient:
            self.grad_scaler.update()

    def _unwrapped_model(self) -> nn.Module:
        model: nn.Module = self.model
        return getattr(model, "module", model)

    def compute_gradient(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Backward pass and clipping; returns the gradient norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        total = functools.reduce(torch.add, losses.values())
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)

    def exchange_reports(
        self,
        batch: list[dict],
        losses: dict[str, torch.Tensor],
        metrics: dict[str, torch.Tensor],
        error: str,
        data_time: float,
    ) -> list[StepReport]:
        """Bring losses, metrics and gradient norm to the host in one copy and tell all processes.

        Returns:
            the reports of all processes, by rank.
        """
        scalars = {**losses, **metrics}
        values = (
            torch.stack([value.detach().float() for value in scalars.values()]).tolist() if scalars else []
        )
        host = dict(zip(scalars, values))
        get_event_storage().put_scalars(
            **{name: host[name] for name in metrics if math.isfinite(host[name])},
            smoothing_hint=True,
            cur_iter=self.iter,
        )
        # Under loss scaling gradients overflow now and then, and the scaler deals with it.
        scaled = self.grad_scaler.is_enabled()
        report = StepReport(
            losses={name: host[name] for name in losses},
            checked={} if scaled or "grad_norm" not in host else {"grad_norm": host["grad_norm"]},
            error=error,
            data_time=data_time,
            stop_signal=self.stop_signals.received,
            file_names=(),
        )
        if not report.is_finite():
            report = report._replace(file_names=tuple(str(sample.get("file_name")) for sample in batch))
        reports = comm.all_gather(report)
        self.stop_signals.agreed = max(report.stop_signal for report in reports)
        return reports

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


def write_metrics(reports: list[StepReport], iteration: int) -> None:
    """Log the losses, averaged over the processes, and their total; on the main process."""
    if not comm.is_main_process():
        return
    storage = get_event_storage()
    losses = {name: np.mean([report.losses[name] for report in reports]) for name in reports[0].losses}
    storage.put_scalar("data_time", max(report.data_time for report in reports), cur_iter=iteration)
    storage.put_scalar("total_loss", sum(losses.values()), cur_iter=iteration)
    if len(losses) > 1:
        storage.put_scalars(cur_iter=iteration, **losses)
