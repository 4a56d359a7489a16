#!/usr/bin/env python
"""Learning curves of several runs in one picture; ``--help`` and updetr_d2/cli/curves.py say how."""

import sys

from updetr_d2.cli.curves import main

if __name__ == "__main__":
    sys.exit(main())
