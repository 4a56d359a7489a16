"""What to look at on a GPU first; see :mod:`benchmarks.gpu_check.check`."""
