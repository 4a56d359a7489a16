#!/usr/bin/env python
"""Does pre-training help? ``--help`` and benchmarks/few_label/transfer.py say how it is measured."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what it calls is no part of the package

from benchmarks.few_label.transfer import run

if __name__ == "__main__":
    sys.exit(run())
