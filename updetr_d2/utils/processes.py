"""The environment of trainings that are started as processes of their own."""

import os

# Without these, glibc gives the memory of every large tensor back and gets it anew: a fifth of a step on a CPU.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "200000000",
}


def training_environment(*, threads: int = 0, gpu: str = "") -> dict[str, str]:
    """Environment variables of a training; what is set already stays, but for the GPU.

    Args:
        threads: of PyTorch on the CPU; 0 leaves the choice to PyTorch and to ``OMP_NUM_THREADS``.
        gpu: the only one that it sees; "" for all.
    """
    own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return {**_MEMORY, **own, **os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}


def visible_gpus(count: int) -> list[str]:
    """The GPUs that this process sees, by the names that ``CUDA_VISIBLE_DEVICES`` has for them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]
