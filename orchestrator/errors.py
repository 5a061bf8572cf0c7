"""The kinds of failure that a user can mend: what was asked for, and a full disk.

Everything else that goes wrong is a fault of ours and keeps its traceback.
"""

import errno
import os

FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full", "inline_container.cc")


class UserError(ValueError):
    """A fault in what was asked for: one line that names the field, the value and the remedy (exit 2)."""


def disk_is_full(error: object) -> bool:
    """Whether that is at the bottom of it, in whose words ever: SQLite, torch.save and a worker have their own."""
    return any(words in str(error) for words in FULL)
