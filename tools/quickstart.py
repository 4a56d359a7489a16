#!/usr/bin/env python
"""Pre-train, train detectors from few labels, compare: `make quickstart`, see benchmarks/quickstart/command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what it calls is no part of the package

from benchmarks.quickstart.command import main

if __name__ == "__main__":
    sys.exit(main())
