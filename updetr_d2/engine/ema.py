"""An exponential moving average (EMA) of the weights, beside those that are trained."""

from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# Before the names of the results of the averaged weights, and the folder in OUTPUT_DIR of their files.
EMA_RESULTS = "ema"


class WeightAverage:
    """A second model whose weights follow those of a model in training.

    After update t = 1, 2, … they are d_t · average + (1 − d_t) · weights, where d_t is ``decay`` or, with
    ``warmup``, the smaller of it and (1 + t) / (10 + t): the average of a young run holds no old weights. Buffers
    are copied.

    Args:
        model: to follow; it is copied.
        decay: share of the average that an update keeps, in [0, 1).
        warmup: shorten the average at the start.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool = True) -> None:
        self.decay = decay
        self.warmup = warmup
        self._average = AveragedModel(model, multi_avg_fn=self._mix)
        self._average.requires_grad_(False).eval()

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, in evaluation mode; always the same object."""
        return self._average.module

    @property
    def num_updates(self) -> int | None:
        """Updates since :meth:`start`; None before."""
        return int(self._average.n_averaged) - 1 if self._average.n_averaged else None

    def start(self, model: nn.Module) -> None:
        """Begin anew with the weights of ``model``."""
        self._average.n_averaged.zero_()
        self.update(model)

    def update(self, model: nn.Module) -> None:
        """Follow the weights that ``model`` has now."""
        self._average.update_parameters(model)
        self._average.eval()  # what was computed from the weights before, such as folded norms, is forgotten

    def _mix(self, averages: Any, weights: Any, _: Tensor | int) -> None:
        t = int(self._average.n_averaged)  # counts the start as one
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(averages, weights, t)

    def state_dict(self) -> dict[str, Any]:
        """In a checkpoint: ``model``, a state dict with the names of the model, and ``num_updates``."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self._average.n_averaged.fill_(state["num_updates"] + 1)
        self._average.eval()


class EMAHook(HookBase):
    """Update the average after each step; stands before the checkpoints and the evaluation.

    Args:
        average: to update.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    @torch.no_grad()
    def after_step(self) -> None:
        model = self.trainer.model
        self.average.update(getattr(model, "module", model))
