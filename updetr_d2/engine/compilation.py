"""``MODEL.COMPILE``: the transformer through ``torch.compile`` in training, and as it is where that fails.

The CNN stays as it is: with images of many sizes the compiler gives up the memory format channels-last, and the
guards on the parity of each size use up its limit of recompilations in the first evaluation.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


def compile_parts(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the transformer of a model in place, at its first call in training.

    If it cannot be compiled (no compiler on the machine, an operation that is not supported) it runs as it is, and
    a warning says why. Parameters and their names stay the same.

    Args:
        model: a meta-architecture of this package; one whose transformer has no ``forward`` stays as it is.
        backend: of ``torch.compile``.
    """
    transformer = getattr(model, "transformer", None)
    if transformer is None or type(transformer).forward is nn.Module.forward:
        logger.warning("MODEL.COMPILE: %s has nothing to compile.", type(transformer or model).__name__)
        return
    # Images of different sizes from the first step on: symbolic sizes at once save a compilation.
    compiled = torch.compile(transformer.forward, backend=backend, dynamic=True)
    transformer.forward = _with_fallback(compiled, transformer)


def _with_fallback(compiled: Callable, transformer: nn.Module) -> Callable:
    """A function that runs ``compiled`` in training until it fails, and what the module did before otherwise."""
    plain, failed = transformer.forward, False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if transformer.training and not failed:
            try:
                return compiled(*args, **kwargs)
            # The plain function tells whether the input is to blame: then it raises the same again.
            except Exception as error:
                result = plain(*args, **kwargs)
                failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("MODEL.COMPILE: the transformer runs without torch.compile (%s).", reason)
                return result
        return plain(*args, **kwargs)

    return forward
