"""Numbers of a training step on their way to the host: losses, metrics, and what all processes must know of it."""

import math
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor


class HostCopy:
    """Values on their way to the host, which waits for them only where it reads them."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy of ``values``, float ``[n]``."""
        self._values = values.detach().to("cpu", non_blocking=True)
        self._done = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def tolist(self) -> list[float]:
        if self._done is not None:
            self._done.synchronize()
        return self._values.tolist()


class AgreedFlags(NamedTuple):
    """What the processes have to agree on in each step, on the device.

    Attributes:
        bad: float scalar, 1 if a number of any process is not finite, else 0.
        stop_signal: float scalar, the number of a signal that a process has received, 0 for none.
    """

    bad: Tensor
    stop_signal: Tensor


def agree(numbers: list[Tensor], stop_signal: int) -> AgreedFlags:
    """Agree on a step, in one collective operation without waiting for the device.

    Args:
        numbers: scalars of this process that have to be finite.
        stop_signal: that this process has received.
    """
    finite = torch.stack([number.detach().float() for number in numbers]).isfinite().all()
    flags = torch.stack([1 - finite.float(), torch.full_like(finite, stop_signal, dtype=torch.float32)])
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return AgreedFlags(flags[0], flags[1])


class StepNumbers:
    """Losses and metrics of a step of this process and the flags of all, in one copy to the host.

    Args:
        losses, metrics: scalars on the device.
        flags: None for a step without a backward pass.
    """

    def __init__(
        self, losses: dict[str, Tensor], metrics: dict[str, Tensor], flags: AgreedFlags | None
    ) -> None:
        self._names = (list(losses), list(metrics))
        scalars = [*losses.values(), *metrics.values(), *(flags or ())]
        self._copy = HostCopy(torch.stack([value.detach().float() for value in scalars])) if scalars else None
        self._agreed = flags is not None

    def read(self) -> tuple[dict[str, float], dict[str, float], bool, int]:
        """Losses, metrics, whether the step is bad in any process, and the signal to stop of any process."""
        values = [] if self._copy is None else self._copy.tolist()
        flags = values[-len(AgreedFlags._fields) :] if self._agreed else (1.0, 0.0)
        losses, metrics = self._names
        of_losses, of_metrics = values[: len(losses)], values[len(losses) :]
        return dict(zip(losses, of_losses)), dict(zip(metrics, of_metrics)), bool(flags[0]), int(flags[1])


def finite(scalars: dict[str, float]) -> dict[str, float]:
    """Those that are."""
    return {name: value for name, value in scalars.items() if math.isfinite(value)}
