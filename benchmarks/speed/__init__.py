"""Parts of tools/benchmark.py, one module for each subcommand, and the straightforward reference they compare to.

Each subcommand's module has ``add_arguments(parser)`` and ``run(args, cfg) -> list[Measurement]``.
"""
