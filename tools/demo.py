#!/usr/bin/env python
"""Draw what a model finds in images; ``--help`` and updetr_d2/cli/demo.py say how."""

import sys

from updetr_d2.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
