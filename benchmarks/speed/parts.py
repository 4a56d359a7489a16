"""Where the time of a training step goes: clocks on the modules of a model, ours or the reference."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.speed.timing import Clock

IMAGES, PATCHES = "backbone, images", "backbone, patches"


class PartClock:
    """Measure the parts of a forward pass; every reading waits for the GPU, so totals are measured without it.

    Args:
        model: with ``backbone``, ``transformer`` and a ``criterion`` that has a ``matcher``.
        clock: to read.

    Attributes:
        seconds: of each part in the forward pass since.
    """

    def __init__(self, model: Any, clock: Clock) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._backbone_calls = 0
        self._criterion = model.criterion
        self._matcher = model.criterion.matcher
        model.criterion.matcher = self._timed_matcher
        self._hooks = []
        for module, name in (
            (model.backbone, self._backbone_part),
            (model.transformer, "transformer"),
            (model.criterion, "criterion"),
        ):
            self._hooks.append(module.register_forward_pre_hook(lambda *_, m=module: self._start(m)))
            self._hooks.append(
                module.register_forward_hook(lambda *_, m=module, name=name: self._stop(m, name))
            )
        self._starts: dict[nn.Module, float] = {}

    def remove(self) -> None:
        """Take the clocks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._criterion.matcher = self._matcher

    def _start(self, module: nn.Module) -> None:
        self._starts[module] = self.clock()

    def _stop(self, module: nn.Module, name: str | Callable[[], str]) -> None:
        part = name if isinstance(name, str) else name()
        self.seconds[part] += self.clock() - self._starts.pop(module)

    def _backbone_part(self) -> str:
        self._backbone_calls += 1
        return IMAGES if self._backbone_calls == 1 else PATCHES

    def _timed_matcher(self, *args: Any) -> Any:
        start = self.clock()
        result = self._matcher(*args)
        self.seconds["matcher"] += self.clock() - start
        return result
