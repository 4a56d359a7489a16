"""``MODEL.COMPILE``: the CNN and the transformer through ``torch.compile``, and as they are where that fails."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

# Parts without loops over images or copies to the host. They are called with few different shapes.
_PARTS = ("backbone", "transformer")


def compile_parts(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the backbone and the transformer of a model in place, at their first call.

    A part that cannot be compiled (no compiler on the machine, an operation that is not supported) runs as it is,
    and a warning says why. Parameters and their names stay the same.

    Args:
        model: a meta-architecture of this package; parts that it lacks are left out.
        backend: of ``torch.compile``.
    """
    for name in _PARTS:
        part = getattr(model, name, None)
        if part is not None:
            part.forward = _with_fallback(torch.compile(part.forward, backend=backend), part.forward, name)


def _with_fallback(compiled: Callable, plain: Callable, name: str) -> Callable:
    """A function that runs ``compiled`` until it fails, and ``plain`` from then on."""
    failed = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*args, **kwargs)
            # The plain function tells whether the input is to blame: then it raises the same again.
            except Exception as error:
                result = plain(*args, **kwargs)
                failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("MODEL.COMPILE: the %s runs without torch.compile (%s).", name, reason)
                return result
        return plain(*args, **kwargs)

    return forward
