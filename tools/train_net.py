#!/usr/bin/env python
"""Pre-train, fine-tune or evaluate a model; ``--help`` and updetr_d2/cli/train.py say how."""

import sys

from updetr_d2.cli.train import main, run, setup  # noqa: F401  (for those who build on them)

if __name__ == "__main__":
    sys.exit(run())
