#!/usr/bin/env python
"""A page to try trained models in the browser; ``--help`` and demo/app.py say how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what it calls is no part of the package

from demo.app import main

if __name__ == "__main__":
    sys.exit(main())
