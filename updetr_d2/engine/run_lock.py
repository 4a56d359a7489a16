"""One run for one OUTPUT_DIR: a second one that starts in it while the first is alive is refused."""

import errno
import fcntl
import logging
import os
import socket
from typing import IO

from updetr_d2.checkpoint.run_files import SaveError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
_held: dict[str, IO[str]] = {}


def lock_output_dir(folder: str, *, option: str = "OUTPUT_DIR") -> None:
    """Hold the lock of a folder that a run writes until this process ends, in whatever way.

    The system gives the lock back with the process (POSIX record locks, which children do not inherit), so that no
    stale one stays: a run that was killed is started again at once.

    Args:
        folder: existing, of the run.
        option: key or option that names it, for the error.

    Raises:
        SaveError: if another process holds it, with its host and number.
    """
    path = os.path.realpath(os.path.join(folder, LOCK_FILE))
    if path in _held:
        return
    file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  (held until the end)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise SaveError(
                f"{option} '{folder}' is in use by {holder}: wait for that run, end it, or choose another "
                f"{option}."
            ) from error
        logger.warning("%s '%s' cannot be locked (%s): start no second run in it.", option, folder, error)
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file


def in_use(folder: str) -> bool:
    """Whether another process holds the lock of ``OUTPUT_DIR``; False where there is no run yet."""
    path = os.path.realpath(os.path.join(folder, LOCK_FILE))
    if path in _held or not os.path.isfile(path):
        return False
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
