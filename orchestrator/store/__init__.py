"""Where results live: a folder for each step, named by everything that determines it.

    with store.writing("measure", fingerprint, manifest) as folder: ...     # there at once, whole, or not at all
    store.find("measure", fingerprint)                                      # the folder, or None: then run the step
    with store.resumable("measure", fingerprint) as partial: ...            # one process at a time is at it

    store.let_go("finetune", fingerprint, ["adapter_model.safetensors"])    # large ones: the record of the step stays

`Store("pkt-store")` is a directory, which several machines may share; `Store("s3://bucket/pkt")` an object store, of
which each machine keeps what it has used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from orchestrator.store import directory
from orchestrator.store.directory import BARE, MANIFEST, Directory
from orchestrator.store.files import flush

__all__ = ["BARE", "MANIFEST", "Backend", "Store", "fingerprint"]


def fingerprint(value: Any) -> str:
    """A name for a JSON value: equal values, equal names. TypeError for anything else, rather than a guess."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Backend(Protocol):
    """What keeps the folders. A step is there once its manifest, which is published last, is."""

    root: Path  # where they are on this machine
    address: str  # by which other processes find the same

    def check(self) -> None:
        """UserError where nothing could be kept."""

    def find(self, step: str, key: str, *, bare: bool) -> Path | None:
        """The finished step's folder."""

    def has(self, step: str, key: str) -> bool:
        """Whether `find` would return one, without having it here."""

    def aside(self, step: str, key: str) -> Path:
        """A folder to fill."""

    def publish(self, step: str, key: str, aside: Path) -> None:
        """Put a filled one, with its manifest, in its place; who comes second finds the first one's there."""

    def remove(self, step: str, key: str) -> None:
        """Whole at one moment, gone at the next."""

    def let_go(self, step: str, key: str, names: Sequence[str]) -> None:
        """Remove some of its files, and note that."""

    def lease(self, step: str, key: str) -> AbstractContextManager[Path]:
        """Be the only one that is at a step; a holder that died has it no more. Yields its folder."""

    def in_use(self) -> AbstractContextManager[None]:
        """Nothing is cleared away meanwhile."""

    def unused(self) -> AbstractContextManager[None]:
        """Nobody builds on it meanwhile."""

    def kept(self, folder: Path) -> AbstractContextManager[None]:
        """What the block leaves in a folder of the root that is no step's is kept, too."""

    def send(self, file: Path) -> None:
        """A file of such a folder is for others at once."""

    def bring(self, place: str) -> None:
        """What others kept so under a folder of the root is there now."""


class Store:
    """Finished steps: what whoever makes one or builds on one asks and tells."""

    def __init__(self, where: Path | str | Backend) -> None:
        self._backend = _backend(where) if isinstance(where, Path | str) else where
        self.root, self.address = self._backend.root, self._backend.address

    @property
    def apart(self) -> bool:
        """Whether each machine has a folder of its own, so that what one process writes another may not see."""
        return "://" in self.address

    def check(self) -> None:
        """UserError where nothing could be kept, before anything is computed. Leaves no trace."""
        self._backend.check()

    def not_shared(self) -> str:
        """What to say where a worker has none of what the store has here."""
        return f"its worker doesn't share the store {self.address}; name one on a common file system"

    def find(self, step: str, key: str, *, bare: bool = False) -> Path | None:
        """The finished step's folder, or None; with `bare` one whose large files were let go is good enough."""
        return self._backend.find(step, key, bare=bare)

    def has(self, step: str, key: str) -> bool:
        """Whether there is one, for who needn't read it."""
        return self._backend.has(step, key)

    def awaited(self, step: str, key: str, seconds: float = directory.LATE) -> bool:
        """The same of a step that another machine has finished: False where it isn't seen within so many seconds."""
        return directory.seen(lambda: self.has(step, key), seconds)

    @contextmanager
    def writing(self, step: str, key: str, manifest: Mapping[str, Any]) -> Iterator[Path]:
        """A folder to fill, published when the block ends without an error.

        Files are flushed to disk before, and the manifest, with the sha256 of each, is written last. Where another
        process finished the same step first, its folder stays and this one is dropped.
        """
        aside = self._backend.aside(step, key)
        try:
            yield aside
            files = sorted(path for path in aside.rglob("*") if path.is_file())
            sums = {str(path.relative_to(aside)): flush(path) for path in files}
            content = {"step": step, "fingerprint": key, **manifest, "files": sums}
            (aside / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
            flush(aside / MANIFEST)
            self._backend.publish(step, key, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def remove(self, step: str, key: str) -> None:
        """A finished step, whole at one moment and gone at the next."""
        self._backend.remove(step, key)

    def let_go(self, step: str, key: str, names: Sequence[str]) -> None:
        """Remove large files and folders of a finished step: whoever needs it whole makes it again.

        That it isn't whole is written first: a process that is killed in between leaves nothing that looks like it.
        """
        self._backend.let_go(step, key, names)

    def resumable(self, step: str, key: str) -> AbstractContextManager[Path]:
        """A folder for what an unfinished step would go on from, dropped once the block ends without an error.

        One process at a time has it; another waits, and may then find the step finished.
        """
        return self._backend.lease(step, key)

    def in_use(self) -> AbstractContextManager[None]:
        """For whoever makes steps or builds on them: nothing is cleared away meanwhile."""
        return self._backend.in_use()

    def unused(self) -> AbstractContextManager[None]:
        """For whoever clears away. UserError where somebody builds on what is here; he who comes now waits."""
        return self._backend.unused()

    def kept(self, folder: Path) -> AbstractContextManager[None]:
        """While a sweep is at its own folder: what it leaves there, however it ends, is for others, too."""
        return self._backend.kept(folder)

    def send(self, file: Path) -> None:
        """Let others see a file of such a folder now, and not only once the sweep ends."""
        self._backend.send(file)

    def bring(self, place: str) -> None:
        """See what others have left in such folders, under this one."""
        self._backend.bring(place)


def _backend(where: Path | str) -> Backend:
    if "://" not in str(where):
        return Directory(Path(where))
    from orchestrator.store.objects import Objects  # whose libraries take a second

    return Objects(str(where))
