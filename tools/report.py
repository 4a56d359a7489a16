#!/usr/bin/env python
"""One HTML page about one or several runs; ``--help`` and updetr_d2/cli/report.py say how."""

import sys

from updetr_d2.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
