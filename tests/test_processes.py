"""The processes of other tests."""

import os

import torch
from processes import run_processes


def gradient() -> float:
    x = torch.ones((), requires_grad=True)
    (2 * x).backward()
    return float(x.grad)


def test_processes_compute_gradients_whatever_the_test_has_done():
    """Where there is a GPU, or a pretended one, PyTorch's engine has threads, which a fork would not have."""
    torch._C._ensureCUDADeviceGuardSet()
    gradient()
    assert run_processes(1, gradient) == [2]


def variable(name: str) -> str | None:
    return os.environ.get(name)


def test_processes_have_the_environment_of_the_test(monkeypatch):
    run_processes(1, variable, "HOME")  # the server starts
    monkeypatch.setenv("UPDETR_D2_OF_THE_TEST", "here")
    assert run_processes(1, variable, "UPDETR_D2_OF_THE_TEST") == ["here"]
