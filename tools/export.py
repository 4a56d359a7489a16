#!/usr/bin/env python
"""Write a detector as ONNX; ``--help`` and updetr_d2/cli/export.py say how."""

import sys

from updetr_d2.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
