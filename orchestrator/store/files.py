"""Files that are whole or absent, whoever looks and whatever ends the process that writes them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import UserError


@contextmanager
def placing(target: Path, field: str) -> Iterator[Path]:
    """A folder to fill outside of any store, moved to `target` when the block ends without an error.

    UserError where it can't be written. An empty folder there gives way; what is in another one is never touched.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".pkt-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{field}: {target} can't be written ({error.strerror}); name another folder") from error
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors' are the owner's alone, and these are for others
                flush(path)
        aside.chmod(0o755)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write a file under until the block ends: whoever finds it in its place finds it whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        flush(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def link(file: Path, second: Path) -> None:
    """The same file under a second name; a copy where the file system has no such names (exFAT, some shares)."""
    try:
        os.link(file, second)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        shutil.copyfile(file, second)


def flush(path: Path) -> str:
    """Sync a file to disk; returns its sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
