"""Gradient accumulation: one update from several forward and backward passes, as if it were one large batch.

Losses are averaged over the boxes, or the weights of the queries, of the whole update, which the targets of its
samples tell beforehand. What remains is that each part is padded by itself.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def split_batch(batch: list[dict], num_parts: int, *, losses_add_up: bool) -> list[list[dict]]:
    """Split the samples of an update into parts of the same size, or one more.

    Args:
        batch: samples; ``instances`` are their targets.
        num_parts: at most that many parts.
        losses_add_up: tell the model about the targets of all samples by ``update_counts``.
    """
    if num_parts == 1:
        return [batch]
    if losses_add_up:
        counts = [len(sample.get("instances", ())) for sample in batch]
        batch = [{**sample, "update_counts": counts} for sample in batch]
    num_parts = min(num_parts, len(batch))
    ends = [len(batch) * i // num_parts for i in range(num_parts + 1)]
    return [batch[start:end] for start, end in itertools.pairwise(ends)]


def gradients_later(model: nn.Module, later: bool) -> contextlib.AbstractContextManager:
    """Keep DDP from exchanging gradients in the passes inside; those after them exchange the sum."""
    if later and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


class PartSums:
    """Losses and metrics of an update from those of its parts, on the device.

    Args:
        losses_add_up: losses are summed; else, of models that know nothing of parts, averaged.
    """

    def __init__(self, *, losses_add_up: bool) -> None:
        self.losses_add_up = losses_add_up
        self._losses: dict[str, list[Tensor]] = defaultdict(list)
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, losses: Mapping[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
        for sums, values in ((self._losses, losses), (self._metrics, metrics)):
            for name, value in values.items():
                sums[name].append(value.detach())

    def losses(self) -> dict[str, Tensor]:
        reduce = torch.sum if self.losses_add_up else torch.mean
        return {name: _reduced(values, reduce) for name, values in self._losses.items()}

    def metrics(self) -> dict[str, Tensor]:
        return {name: _reduced(values, torch.mean) for name, values in self._metrics.items()}


def _reduced(values: Sequence[Tensor], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else reduce(torch.stack([value.float() for value in values]))
