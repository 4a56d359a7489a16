"""CPU tensors that pretend to be on a GPU: mixed devices, waits and copies show up on machines without one.

``to_cuda(model)`` wraps parameters and buffers; inside ``PretendCuda()`` every operation runs on the CPU tensors
within, and what a GPU would refuse is refused: operations on tensors of both devices, ``.numpy()``. What makes
the host wait, and every copy between the two, is counted by the function that caused it. Backward passes cannot
run so: PyTorch's engine asks the driver.
"""

import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")

# Code that events are put down to; the innermost function of it counts.
_PROJECT = ("/updetr_d2/", "/benchmarks/", "/demo/")

aten = torch.ops.aten
# The shape or the value of their results is known only when the device has computed it.
_WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class MixedDevices(RuntimeError):
    """An operation on tensors of the CPU and of the GPU."""


class CudaTensor(torch.Tensor):
    """A tensor that says it is on ``cuda:0``; its values are in ``inner``, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        tensor.inner = inner.detach()
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return PretendCuda().__torch_dispatch__(function, types, args, kwargs)

    def __repr__(self):
        return f"CudaTensor({self.inner!r})"

    def __deepcopy__(self, memo):
        copied = CudaTensor(self.inner.clone())
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied

    def data_ptr(self):
        return self.inner.data_ptr()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *args, **kwargs):
        self.numpy()

    def tolist(self):
        PretendCuda.note("wait")
        return self.inner.tolist()

    def unsqueeze_(self, dim):
        return self.unsqueeze(dim)  # what a wrapper's shape is cannot change; callers go on with the result

    def new_tensor(self, data, **kwargs):
        kwargs.setdefault("dtype", self.dtype)
        return torch.tensor(data, device=self.device, **kwargs)


def to_cuda(value):
    """The same on the pretended GPU: a module (in place), or a tensor."""
    if not isinstance(value, nn.Module):
        return value if isinstance(value, CudaTensor) else CudaTensor(value)
    for module in value.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(CudaTensor(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = CudaTensor(buffer)
    return value


class PretendCuda(TorchDispatchMode):
    """Run operations of pretended tensors; count waits and copies by function of this project.

    Attributes:
        events: (kind, function) -> how often; kinds are "wait", "copy to the host", "copy to the device" and
            "blocking copy to the device".
    """

    _active: ClassVar[list["PretendCuda"]] = []

    def __init__(self):
        super().__init__()
        self.events = Counter()

    def __enter__(self):
        self._active.append(self)
        return super().__enter__()

    def __exit__(self, *exception):
        self._active.pop()
        return super().__exit__(*exception)

    @classmethod
    def note(cls, kind):
        """Count an event of the innermost context."""
        ours = [
            frame
            for frame in traceback.extract_stack()
            if any(folder in frame.filename for folder in _PROJECT) and not frame.name.startswith("<")
        ]
        where = f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "elsewhere"
        if cls._active:
            cls._active[-1].events[kind, where] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if isinstance(x, CudaTensor)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if function is aten._to_copy.default:
            return self._to_copy(function, args, kwargs, target)
        if function is aten.copy_.default and isinstance(args[0], CudaTensor) != isinstance(
            args[1], CudaTensor
        ):
            self._note_copy(isinstance(args[0], CudaTensor), non_blocking=len(args) > 2 and args[2])
            function(*tree_map(_inner, args))
            return args[0]
        if on_device:
            if function in _INDEXING and isinstance(
                args[0], CudaTensor
            ):  # GPUs take indices of the CPU, and wait
                indices = [
                    i for i in args[1] if isinstance(i, torch.Tensor) and not isinstance(i, CudaTensor)
                ]
                for _ in indices:
                    self.note("blocking copy to the device")
                tensors = [x for x in tensors if not any(x is index for index in indices)]
            self._check(function, tensors)
        elif target is None or target.type != "cuda":
            return function(*args, **kwargs)
        if function is aten._fused_sdp_choice.default:
            return 0  # attention written out, which runs anywhere
        if self._waits(function, args):
            self.note("wait")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        result = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        outer = {id(x.inner): x for x in on_device}  # results of operations in place are their arguments

        def wrap(value):
            if not isinstance(value, torch.Tensor):
                return value
            return outer[id(value)] if id(value) in outer else CudaTensor(value)

        return tree_map(wrap, result)

    def _to_copy(self, function, args, kwargs, target):
        source_on_device = isinstance(args[0], CudaTensor)
        to_device = source_on_device if target is None else target.type == "cuda"
        if source_on_device != to_device:
            self._note_copy(to_device, non_blocking=kwargs.get("non_blocking", False))
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        result = function(_inner(args[0]), **kwargs)
        return CudaTensor(result) if to_device else result

    def _note_copy(self, to_device, *, non_blocking):
        if not to_device:
            self.note("copy to the host")
        else:
            self.note("copy to the device" if non_blocking else "blocking copy to the device")

    @staticmethod
    def _check(function, tensors):
        on_host = [x for x in tensors if not isinstance(x, CudaTensor) and x.dim() > 0]
        if on_host:
            frames = traceback.extract_stack()
            where = [f for f in frames if "/torch/" not in f.filename and f.filename != __file__][-1]
            raise MixedDevices(
                f"{function} has tensors on the CPU {[tuple(x.shape) for x in on_host]} and on the GPU, in "
                f"{where.filename}:{where.lineno}"
            )

    @staticmethod
    def _waits(function, args):
        by_mask = function in _INDEXING and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        return function in _WAITING or by_mask


def _inner(value):
    return value.inner if isinstance(value, CudaTensor) else value


@contextmanager
def pretend_cuda():
    """:class:`PretendCuda` on a machine that seems to have a GPU; gives the mode, whose ``events`` are counted."""
    create = torch.tensor

    def tensor(data, *args, device=None, **kwargs):
        value = create(data, *args, **kwargs)
        if device is not None and torch.device(device).type == "cuda":
            PretendCuda.note("blocking copy to the device")
            value = CudaTensor(value)
        return value

    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for target, replacement in {
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda.synchronize": lambda *_: None,
            "torch.tensor": tensor,
        }.items():
            stack.enter_context(mock.patch(target, replacement))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # whose operators CPUs do not have
        yield stack.enter_context(PretendCuda())


class SimulatedTF32(TorchDispatchMode):
    """Convolutions round their inputs to 10 bits of mantissa where cuDNN would: unless its TF32 is off."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is aten.convolution.default and torch.backends.cudnn.allow_tf32:
            args = (*map(_to_tf32, args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))


def _to_tf32(x):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent).to(x.dtype)
