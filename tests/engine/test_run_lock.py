"""A second run in the OUTPUT_DIR of a living one is refused; once that has ended, by kill -9 too, it is not."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from updetr_d2.checkpoint.run_files import SaveError
from updetr_d2.engine.run_lock import lock_output_dir

HOLD = """
import os, sys, time
from updetr_d2.engine.run_lock import lock_output_dir
lock_output_dir(sys.argv[1])
if os.fork() == 0:  # as a loader worker
    time.sleep(3)
    os._exit(0)
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(SaveError, match=rf"in use by process {first.pid} on {socket.gethostname()}"):
        lock_output_dir(str(tmp_path))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    lock_output_dir(str(tmp_path))  # while its worker is still there
    lock_output_dir(str(tmp_path))  # the same process again
    assert f"process {os.getpid()} " in (tmp_path / "run.lock").read_text()
