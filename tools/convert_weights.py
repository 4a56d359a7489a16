#!/usr/bin/env python
"""Convert checkpoints of other projects, and back; ``--help`` and updetr_d2/cli/convert.py say how."""

import sys

from updetr_d2.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
