"""Steps' folders on a file system, NFS too: a rename makes one appear, and a lock says who is at what."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from orchestrator.errors import UserError
from orchestrator.store.files import appearing

MANIFEST = "manifest.json"
BARE = "let-go.json"  # in a folder whose large files were removed: their names
IN_USE = ".lock"
LATE, POLL = 60.0, 0.1  # seconds: how long NFS may not show what another machine did (acdirmax), between two looks
VANISHED = (errno.ENOENT, errno.ESTALE, errno.ENOLCK)  # of a lock whose file, or whose holder's machine, is gone


class Directory:
    """Finished steps under one root: `<root>/<step>/<key>/`, each with its manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.address = str(self.root)

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

    def find(self, step: str, key: str, *, bare: bool = False) -> Path | None:
        """The finished step's folder, or None; with `bare` one whose large files were let go is good enough."""
        folder = self.root / step / key
        if not (folder / MANIFEST).is_file():
            with suppress(FileNotFoundError):
                os.listdir(folder.parent)  # a client of NFS that remembers that there was none asks again
        there = (folder / MANIFEST).is_file() and (bare or not (folder / BARE).exists())
        return folder if there else None

    def has(self, step: str, key: str) -> bool:
        """The same, for who needn't read it."""
        return self.find(step, key) is not None

    def aside(self, step: str, key: str) -> Path:
        """A folder to fill, from which it is moved to its place."""
        place = self.root / step
        place.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{key}-", dir=place))

    def publish(self, step: str, key: str, aside: Path) -> None:
        """Move a whole folder to its place. Where another process was first, its folder stays."""
        target = self.root / step / key
        aside.chmod(0o755)  # mkdtemp's folders are the owner's alone; a store is shared
        if (target / BARE).exists():
            self.remove(step, key)
        try:
            aside.rename(target)
        except OSError as error:
            theirs = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not theirs or not seen(lambda: self.find(step, key, bare=True), LATE):
                raise

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
    def lease(self, step: str, key: str) -> Iterator[Path]:
        """The folder of whoever is at the step, for what it would go on from. A process that dies lets go."""
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
    def kept(self, folder: Path) -> Iterator[None]:
        """What the block leaves in a folder that is no step's: on a shared file system, it is there for all."""
        yield

    def send(self, file: Path) -> None:
        """It is there for all already."""

    def bring(self, place: str) -> None:
        """What others have left in such folders is there."""


def seen(look: Callable[[], object], seconds: float) -> bool:
    """Whether what another machine did is seen within so many seconds."""
    until = time.monotonic() + seconds
    while not (there := look()) and time.monotonic() < until:
        time.sleep(POLL)
    return bool(there)


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
