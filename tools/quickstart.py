#!/usr/bin/env python
"""Pre-train a small model, fine-tune it, compare: `make quickstart`, see benchmarks/quickstart.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what it calls is no part of the package

from benchmarks.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
