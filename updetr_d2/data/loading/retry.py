"""Waiting for file systems: which errors may pass, and when to try again."""

import errno
from typing import NamedTuple

# Errors that will be the same in a minute: no such file, no permission, not a file.
_LASTING = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}


class RetryPolicy(NamedTuple):
    """How often and when reading a file is tried again.

    Attributes:
        retries: tries after the first one.
        first_delay: seconds before the first of them; each further delay is twice as long.
    """

    retries: int
    first_delay: float

    def delays(self) -> list[float]:
        """Seconds to wait before each further try."""
        return [self.first_delay * 2**i for i in range(self.retries)]


def may_pass(error: BaseException | None) -> bool:
    """Whether an error comes from the operating system and may be gone after a while.

    Errors of the network and of devices may (a server restarts), as may too many open files or too little
    memory. What Pillow raises for damaged files is an ``OSError`` as well, but has no error number.
    """
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING
