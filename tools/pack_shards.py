#!/usr/bin/env python
"""Pack images into tar shards; ``--help`` and updetr_d2/cli/pack_shards.py say how."""

import sys

from updetr_d2.cli.pack_shards import main

if __name__ == "__main__":
    sys.exit(main())
