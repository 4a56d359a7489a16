#!/usr/bin/env python
"""Pre-train, fine-tune or evaluate a model; ``--help`` and updetr_d2/cli/train.py say how."""

import sys

# The names of Detectron2's own train_net.py, for those who build on this file.
from detectron2.engine import default_argument_parser  # noqa: F401

from updetr_d2.cli.train import main, run, setup  # noqa: F401
from updetr_d2.engine.launch import launch  # noqa: F401

if __name__ == "__main__":
    sys.exit(run())
