#!/usr/bin/env python
"""Measure the speed and memory of the parts; ``--help`` and benchmarks/speed/benchmark.py say how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what it calls is no part of the package

from benchmarks.speed.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
