#!/usr/bin/env python
"""Check this code on a GPU, in ten minutes; ``--help`` and benchmarks/gpu_check/check.py say how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what it calls is no part of the package

from benchmarks.gpu_check.check import main

if __name__ == "__main__":
    sys.exit(main())
