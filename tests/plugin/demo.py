"""The demo command of the plugin."""

import sys

import toy_plugin  # noqa: F401  (registration)

from updetr_d2.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
