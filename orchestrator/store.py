"""Where results live: a directory for each step, named by everything that determines it.

    with store.writing("measure", fingerprint) as folder: ...     # appears at once, whole, or not at all
    store.find("measure", fingerprint)                            # the folder, or None: then run the step

The three calls are all that a step's caller needs; they map to an object store's get and put, since what a step
leaves is small files that are written once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError

MANIFEST = "manifest.json"


def fingerprint(value: Any) -> str:
    """A name for a JSON value: equal values, equal names. TypeError for anything else, rather than a guess."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Store:
    """Finished steps under one root: `<root>/<step>/<fingerprint>/`, each with its manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def check(self) -> None:
        """UserError where nothing could be kept, before anything is computed. Leaves no trace."""
        place = self.root
        while not place.exists():
            place = place.parent
        try:
            tempfile.TemporaryFile(dir=place).close()  # permissions alone don't tell: the disk may be read-only
        except OSError as error:
            raise UserError(
                f"store: {self.root} is not writable ({error.strerror}); name another folder with --store DIR"
            ) from error

    def not_shared(self) -> str:
        """What to say where a worker has none of what the store has here."""
        return f"its worker doesn't share the store {self.root}; name one on a common file system"

    def find(self, step: str, key: str) -> Path | None:
        """The finished step's folder, or None."""
        folder = self.root / step / key
        return folder if (folder / MANIFEST).is_file() else None

    @contextmanager
    def writing(self, step: str, key: str, manifest: Mapping[str, Any]) -> Iterator[Path]:
        """A folder to fill, moved to its place when the block ends without an error.

        Files are flushed to disk before the move, and the manifest, with the sha256 of each, is written last.
        Where another process finished the same step first, its folder stays and this one is dropped.
        """
        target = self.root / step / key
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
        try:
            yield aside
            files = sorted(path for path in aside.rglob("*") if path.is_file())
            sums = {str(path.relative_to(aside)): _flush(path) for path in files}
            content = {"step": step, "fingerprint": key, **manifest, "files": sums}
            (aside / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
            _flush(aside / MANIFEST)
            aside.chmod(0o755)  # mkdtemp's folders are the owner's alone; a store is shared
            try:
                aside.rename(target)
            except OSError:
                if self.find(step, key) is None:
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def resumable(self, step: str, key: str) -> Iterator[Path]:
        """A folder for what an unfinished step would go on from, dropped once the block ends without an error.

        One process at a time has it; another waits, and may then find the step finished.
        """
        folder = self.root / step / f".{key}.partial"
        with held(folder / "lock", f"waiting for another process that is at the same step: {step}"):
            yield folder
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held(file: Path, waiting: str) -> Iterator[None]:
    """A file that one process has at a time; another is told what it is waiting for. A process that dies lets go."""
    told = False
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = file.open("w")
        except FileNotFoundError:  # whoever had it has just removed its folder
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    logging.getLogger("pkt").warning(waiting)
                told = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:  # else it was removed while we waited, and is nobody's
                yield
                return


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
                _flush(path)
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
        _flush(aside)
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


def _flush(path: Path) -> str:
    """Sync a file to disk; returns its sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
