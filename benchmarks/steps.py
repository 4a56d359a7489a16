"""Recipes of several commands: each is printed as one could type it, and skipped where its result is there."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from updetr_d2.utils.processes import training_environment

ROOT = Path(__file__).resolve().parent.parent


def run_step(
    title: str, command: Sequence, *, result: Path, again: str, log: Path | None = None, threads: int = 0
) -> None:
    """Run a command of this project unless its result is there already; stop if it fails.

    Args:
        title: what it does.
        command: script and arguments, for this Python, in the repository's root.
        result: file that it leaves behind when it is done.
        again: the command that goes on from here, for the message if it fails.
        log: file for what it prints, for steps that run side by side; the console without it.
        threads: of PyTorch on the CPU; 0 leaves the choice to PyTorch and to ``OMP_NUM_THREADS``.
    """
    done = (ROOT / result).exists()
    command = [str(part) for part in command]
    what = f"done before: {result}" if done else f"python {shlex.join(command)}"
    print(f"\n=== {title}\n{what}\n", end="", flush=True)  # at once, as steps may run side by side
    if done:
        return
    env = training_environment(threads=threads)
    if log is not None:
        (ROOT / log).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if log is None else open(ROOT / log, "a") as output:
        status = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, stdout=output, stderr=output
        ).returncode
    if status:
        where = f" ({log})" if log is not None else ""
        sys.exit(
            f"{title}: failed with status {status}{where}; `{again}` goes on from here once it is mended."
        )
