"""The kinds of failure that a user can mend, what was asked for and a full disk, and those that mend themselves.

Everything else that goes wrong is a fault of ours and keeps its traceback.
"""

import errno
import os

FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full", "inline_container.cc")

# What a disk, a file server or a network gets over by itself, and how the libraries that talk over one call it.
PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED}
PASSING |= {errno.ECONNABORTED, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET}
BLIPS = {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "ProtocolError", "ChunkedEncodingError"}
BLIPS |= {"NewConnectionError", "MaxRetryError", "IncompleteRead"}
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses of an HTTP server that may answer later


class UserError(ValueError):
    """A fault in what was asked for: one line that names the field, the value and the remedy (exit 2)."""


def disk_is_full(error: object) -> bool:
    """Whether that is at the bottom of it, in whose words ever: SQLite, torch.save and a worker have their own."""
    return any(words in str(error) for words in FULL)


def passes(error: BaseException | None) -> bool:
    """Whether what is at the bottom of it goes away by itself, so that the same may be tried again."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if disk_is_full(error) or "OfflineModeIsEnabled" in names:  # the hub's, which somebody asked for
            return False
        number, status = getattr(error, "errno", None), getattr(getattr(error, "response", None), "status_code", None)
        if number in PASSING or status in BUSY or names & BLIPS:
            return True
        below = error.__cause__ or getattr(error, "cause", None)  # Ray's of what a rank raised
        error = below or (None if error.__suppress_context__ else error.__context__)
    return False
