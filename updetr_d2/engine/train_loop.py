"""One training step: autocast on any device, full-model gradient clipping, one device-to-host copy."""

import time
from collections.abc import Iterable

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn


class TrainLoop(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with the step that DETR-style training needs.

    Args:
        model: returns a dict of weighted scalar losses in training; a dict ``training_metrics`` of scalars on
            it, if there is one, is logged beside them.
        data_loader: iterable of batches, with the ``seed`` of the run.
        optimizer: over the parameters of ``model``.
        amp_dtype: autocast type, ``torch.bfloat16`` or ``torch.float16`` (with loss scaling), None for float32.
        max_grad_norm: bound on the gradient norm of the whole model, None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.amp_dtype = amp_dtype
        self.max_grad_norm = float("inf") if max_grad_norm is None else max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device_type = self.parameters[0].device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)

    def run_step(self) -> None:
        self.seed_step()
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.write_step_metrics(losses, grad_norm, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def seed_step(self) -> None:
        """Make dropout, query masks and shuffles of a step a function of the seed, the process and the step.

        A resumed run then goes on as if it had never stopped, without generator states in the checkpoint.
        """
        key = (self.data_loader.seed, comm.get_rank(), self.iter)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def write_step_metrics(
        self, losses: dict[str, torch.Tensor], grad_norm: torch.Tensor, data_time: float
    ) -> None:
        """Log losses, metrics and gradient norm, brought to the host in one copy.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        unwrapped = getattr(self.model, "module", self.model)
        logged = {**getattr(unwrapped, "training_metrics", {}), "grad_norm": grad_norm}
        scalars = {**losses, **logged}
        values = torch.stack([value.detach().float() for value in scalars.values()]).cpu()
        host = dict(zip(scalars, values))
        self._write_metrics({name: host[name] for name in losses}, data_time)
        get_event_storage().put_scalars(
            **{name: float(host[name]) for name in logged}, smoothing_hint=True, cur_iter=self.iter
        )

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
