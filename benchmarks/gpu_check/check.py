"""Check on a GPU what was only tested without one, and measure it: the first thing to run on a new kind of device.

    python tools/gpu_check.py --json docs/measurements/gpu_NAME.json

Each block runs in a process of its own with a time limit, so that one that crashes or hangs takes nothing with it.
``--small`` takes tiny models and few repeats; so it runs on a CPU as well, without the blocks that need a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.speed.report import environment
from updetr_d2.utils.files import write_text

ROOT = Path(__file__).resolve().parents[2]
# Seconds that a block may take.
LIMIT = 180


def main(arguments: list[str] | None = None) -> int:
    """Run the blocks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny models, few repeats")
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS), help="default: all")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for a block (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="file to write the results to")
    args = parser.parse_args(arguments)
    results = {name: run_block(name, args) for name in args.blocks}
    print(tabulate(rows(results), headers=["block", "what", "value"], disable_numparse=True))
    if args.json:
        device = environment(torch.device(args.device))
        write_text(args.json, json.dumps({"environment": device, "blocks": results}, indent=1) + "\n")
        print(f"Written to {args.json}.")
    return int(any(result["status"] == "failed" for result in results.values()))


def run_block(name: str, args: argparse.Namespace) -> dict:
    """Run a block in a process of its own.

    Returns:
        ``status`` ("ok", "failed" or "not here"), ``seconds``, ``values`` by name, ``reason`` if there are none.
    """
    if BLOCKS[name].needs_gpu and not args.device.startswith("cuda"):
        return {"status": "not here", "seconds": 0.0, "values": {}, "reason": "it needs a GPU"}
    command = [sys.executable, "-m", "benchmarks.gpu_check.blocks", name, args.device]
    command += ["--small"] if args.small else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=args.limit
        )
    except subprocess.TimeoutExpired:
        failure = f"not done after {args.limit:g} s"
        return {"status": "failed", "seconds": args.limit, "values": {}, "reason": failure}
    result = {"status": "ok", "seconds": round(time.monotonic() - start, 1), "values": {}, "reason": ""}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {**result, "status": "failed", "reason": last[0]}
    return {**result, "values": json.loads(lines[-1])}


def rows(results: dict[str, dict]) -> list[tuple[str, str, str]]:
    """The results as rows of a table."""
    table = []
    for name, result in results.items():
        table.append((name, result["status"], result["reason"] or f"{result['seconds']} s"))
        for what, value in result["values"].items():
            table.append(("", what, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return table
