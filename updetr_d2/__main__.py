"""``python -m updetr_d2 NAME ...`` is ``updetr NAME ...``."""

import sys

from updetr_d2.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
