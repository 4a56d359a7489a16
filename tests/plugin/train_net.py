"""The training command of the plugin: that of updetr_d2 once its own models and tasks are registered."""

import sys

import toy_plugin  # noqa: F401  (registration)

from updetr_d2.cli.train import run

if __name__ == "__main__":
    sys.exit(run())
