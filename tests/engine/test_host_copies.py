"""Training waits for the device twice a step: for the matching costs and for the numbers that are logged."""

import traceback
from collections import Counter

import pytest
import torch
from helpers import random_sample, tiny_cfg, tiny_model
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.step import OurStep
from benchmarks.speed.timing import Clock

# Operations whose result depends on values, so that the host waits for a device to know it.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


class WaitingOperations(TorchDispatchMode):
    """Counts operations that the host would wait for on a device, by the function of this package."""

    def __init__(self):
        super().__init__()
        self.callers = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if function in WAITING or by_mask:
            ours = [frame for frame in traceback.extract_stack() if "/updetr_d2/" in frame.filename]
            self.callers[ours[-1].name if ours else "elsewhere"] += 1
        return function(*args, **(kwargs or {}))


def build_step(device="cpu"):
    """A function that runs one step of the training loop."""
    cfg = tiny_cfg("UPDETR", "MODEL.DEVICE", device)
    samples = [random_sample(num_patches=5), random_sample(96, 64, num_patches=5)]
    return OurStep(cfg, tiny_model("UPDETR", "MODEL.DEVICE", device), samples, Clock(torch.device(device)))


def test_no_operation_of_a_step_waits_for_values():
    """Seen on a CPU: what remains works on the costs and numbers that are on the host already."""
    step = build_step()
    with WaitingOperations() as operations:
        step()
    # The sizes of the images, the matcher's check of the costs, the scalars of the log.
    on_host = {"preprocess_images", "__call__", "tolist", "elsewhere"}
    assert set(operations.callers) <= on_host, operations.callers


def test_inference_of_any_number_of_patches_waits_for_nothing():
    model = tiny_model("UPDETR").eval()
    with torch.no_grad(), WaitingOperations() as operations:
        model([random_sample(num_patches=5), random_sample(num_patches=2)])
    assert set(operations.callers) <= {"preprocess_images"}, operations.callers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_copies_to_the_host_twice():
    step = build_step("cuda")
    step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    copies = [event for event in profiler.events() if "Memcpy DtoH" in event.name]
    assert len(copies) <= 2, [event.name for event in copies]
