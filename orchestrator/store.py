"""Where results live: a directory for each step, named by everything that determines it.

    with store.writing("measure", fingerprint) as folder: ...     # appears at once, whole, or not at all
    store.find("measure", fingerprint)                            # the folder, or None: then run the step

The three calls are all that a step's caller needs; they map to an object store's get and put, since what a step
leaves is small files that are written once.

    store.let_go("finetune", fingerprint, ["adapter_model.safetensors"])      # large ones: the record of the step stays
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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from orchestrator.errors import UserError

MANIFEST = "manifest.json"
BARE = "let-go.json"  # in a folder whose large files were removed: their names
IN_USE = ".lock"
LATE, POLL = 60.0, 0.1  # seconds: how long NFS may not show what another machine did (acdirmax), between two looks
VANISHED = (errno.ENOENT, errno.ESTALE, errno.ENOLCK)  # of a lock whose file, or whose holder's machine, is gone


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

    def find(self, step: str, key: str, *, bare: bool = False) -> Path | None:
        """The finished step's folder, or None; with `bare` one whose large files were let go is good enough."""
        folder = self.root / step / key
        if not (folder / MANIFEST).is_file():
            with suppress(FileNotFoundError):
                os.listdir(folder.parent)  # a client of NFS that remembers that there was none asks again
        there = (folder / MANIFEST).is_file() and (bare or not (folder / BARE).exists())
        return folder if there else None

    def awaited(self, step: str, key: str, seconds: float = LATE) -> Path | None:
        """The same of a step that another machine has finished: None where it isn't seen within so many seconds."""
        until = time.monotonic() + seconds
        while (folder := self.find(step, key)) is None and time.monotonic() < until:
            time.sleep(POLL)
        return folder

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
            if (target / BARE).exists():
                self.remove(step, key)
            try:
                aside.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self.awaited(step, key):
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def remove(self, step: str, key: str) -> None:
        """A finished step, whole at one moment and gone at the next."""
        folder = self.root / step / key
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=folder.parent) as aside:
            folder.rename(aside)

    def let_go(self, step: str, key: str, names: Sequence[str]) -> None:
        """Remove large files and folders of a finished step: whoever needs it whole makes it again.

        That it isn't whole is written first: a process that is killed in between leaves nothing that looks like it.
        """
        folder = self.find(step, key, bare=True)
        gone = [folder / name for name in names if (folder / name).exists()] if folder else []
        if folder and gone:
            with appearing(folder / BARE) as file:
                file.write_text(json.dumps(list(names)) + "\n")
        for path in gone:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

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
    def in_use(self) -> Iterator[None]:
        """For whoever makes steps or builds on them: nothing is cleared away meanwhile."""
        with held(self.root / IN_USE, "waiting for another process that clears the store", shared=True):
            yield

    @contextmanager
    def unused(self) -> Iterator[None]:
        """For whoever clears away. UserError where somebody builds on what is here; he who comes now waits."""
        with (self.root / IN_USE).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"store: a sweep or a run is at work in {self.root}; try again once it has ended"
                ) from error
            yield


@contextmanager
def held(file: Path, waiting: str, *, shared: bool = False) -> Iterator[None]:
    """A file that one process has at a time, or any number that have it `shared`; others are told what they wait for.

    A process that dies lets go. A lock that vanishes while it is asked for, as on NFS it may, was let go.
    """
    with _locked(file, waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
        yield


def _locked(file: Path, waiting: str, how: int) -> IO[str]:
    told, tries = False, int(LATE / POLL)
    while True:
        with ExitStack() as stack:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(file.open("a+"))  # NFS wants to read what is shared, and to write what isn't
                try:
                    fcntl.flock(lock, how | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not told:
                        logging.getLogger("pkt").warning(waiting)
                    told = True
                    fcntl.flock(lock, how)
                if os.fstat(lock.fileno()).st_nlink:  # else it was removed while we waited, and is nobody's
                    stack.pop_all()
                    return lock
            except OSError as error:
                tries -= 1
                if error.errno not in VANISHED or not tries:
                    raise
                time.sleep(POLL)


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
