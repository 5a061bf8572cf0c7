"""Steps' folders on an object store, by fsspec: S3, GCS and what else it has a file system for.

    <url>/<step>/<key>/<upload>/<file>      # of each try to publish the step, under a name of its own
    <url>/<step>/<key>/manifest.json        # of whoever comes first: the upload's name, and the sha256 of its files
    <url>/<step>/<key>/lease.json           # who is at the step, with a beat that tells that he lives

A manifest is written once all that it names is there, and nothing is listed to find a step, so that neither an upload
that was torn nor a listing that lags is ever seen. What was read or written is kept in a folder of this machine.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from orchestrator.errors import UserError
from orchestrator.store.directory import BARE, MANIFEST, Directory, held
from orchestrator.store.files import flush
from orchestrator.store.remote import BEAT, DEAD, Remote, leased

LEASE, UNSENT = "lease.json", ".unsent"  # the latter in a folder whose contents aren't up there yet


class Objects:
    """What lies under a URL, and the folder in which this machine has what it has used of it."""

    def __init__(
        self, url: str, files: Any = None, here: Path | None = None, *, beat: float = BEAT, dead: float = DEAD
    ) -> None:
        self.address = url.rstrip("/")
        if files is None:
            try:
                files, _ = fsspec.core.url_to_fs(self.address)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"store: {url}: {error}; pip install 'pkt[s3]' is for s3://, other file systems of fsspec have"
                    " packages of their own"
                ) from error
        self._remote = Remote(files, beat, dead)
        self._under = files._strip_protocol(self.address)
        self._here = Directory(here or _cache(self.address))
        self.root = self._here.root
        self._known: set[tuple[str, str]] = set()  # steps that are here as they are up there

    def check(self) -> None:
        """UserError where nothing can be written there, or here."""
        self._here.check()
        probe = f"{self._under}/.probe-{uuid.uuid4().hex}"
        try:
            self._remote.files.pipe_file(probe, b"")
            self._remote.files.rm_file(probe)
        except Exception as error:  # each file system has its own; whichever it is, nothing could be kept
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"store: {self.address} can't be written ({reason}); name another with --store") from error

    def has(self, step: str, key: str) -> bool:
        """Whether it is up there, and whole."""
        return bool(self._current(step, key) or (self._manifest(step, key) and not self._gone(step, key)))

    def find(self, step: str, key: str, *, bare: bool = False) -> Path | None:
        """The folder here, fetched where it isn't."""
        if folder := self._current(step, key, bare=bare):
            return folder
        content, gone = self._manifest(step, key), self._gone(step, key)
        if content is None or (gone and not bare):
            return None
        try:
            self._fetch(step, key, content, gone)
        except FileNotFoundError:  # somebody lets go of it, or replaces it, at this moment
            if (self._manifest(step, key), self._gone(step, key)) == (content, gone):
                raise
            return self.find(step, key, bare=bare)
        return self._here.find(step, key, bare=bare)

    def _current(self, step: str, key: str, *, bare: bool = False) -> Path | None:
        """The folder here, unless what it was fetched from isn't up there any more: asked once a process."""
        folder = self._here.find(step, key, bare=bare)
        if folder and (step, key) not in self._known:
            theirs = self._manifest(step, key)
            with suppress(FileNotFoundError):  # another process of this machine removes it, too
                own = json.loads((folder / MANIFEST).read_text())
                if theirs is None or theirs["upload"] != own["upload"]:
                    self._here.remove(step, key)
            if not folder.is_dir():
                return None
            self._known.add((step, key))
        return folder

    def _fetch(self, step: str, key: str, content: dict[str, Any], gone: Sequence[str]) -> None:
        lock = self.root / step / f".{key}.fetched"
        with held(lock, f"waiting for another process that fetches the same: {step}"):
            try:
                if not self._here.find(step, key, bare=bool(gone)):  # by that one
                    self._download(step, key, content, gone)
            finally:
                lock.unlink()

    def _download(self, step: str, key: str, content: dict[str, Any], gone: Sequence[str]) -> None:
        aside = self._here.aside(step, key)
        try:
            for name, digest in content["files"].items():
                if _within(name, gone):
                    continue
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                self._remote.files.get_file(self._file(step, key, content, name), str(aside / name))
                if flush(aside / name) != digest:
                    raise OSError(errno.EIO, "is not what its manifest says", self._file(step, key, content, name))
            (aside / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
            if gone:
                (aside / BARE).write_text(json.dumps(list(gone)) + "\n")
            self._here.publish(step, key, aside)
            self._known.add((step, key))
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def aside(self, step: str, key: str) -> Path:
        """A folder of this machine."""
        return self._here.aside(step, key)

    def publish(self, step: str, key: str, aside: Path) -> None:
        """Upload the files, then the manifest, unless there is one: then this upload goes, and that one is fetched."""
        content = json.loads((aside / MANIFEST).read_text()) | {"upload": uuid.uuid4().hex}
        manifest = (json.dumps(content, indent=1) + "\n").encode()
        (aside / MANIFEST).write_bytes(manifest)
        for name in content["files"]:
            self._remote.files.put_file(str(aside / name), self._file(step, key, content, name))
        before = self._manifest(step, key) if self._gone(step, key) else None
        if before:  # large files of what is there were let go, and this one is whole
            self._remote.files.pipe_file(self._of(step, key, MANIFEST), manifest)
            self._remote.remove(self._of(step, key, BARE))
            self._drop(step, key, before)
        elif not self._remote.first(self._of(step, key, MANIFEST), manifest):
            self._drop(step, key, content)
            self.find(step, key)
            return
        self._here.publish(step, key, aside)
        self._known.add((step, key))

    def remove(self, step: str, key: str) -> None:
        """The manifest first: without it nothing is found of the rest."""
        content = self._manifest(step, key)
        self._remote.remove(self._of(step, key, MANIFEST))
        self._remote.remove(self._of(step, key, BARE))
        if content:
            self._drop(step, key, content)
        if self._here.find(step, key, bare=True):
            self._here.remove(step, key)

    def let_go(self, step: str, key: str, names: Sequence[str]) -> None:
        """Here and there."""
        self._here.let_go(step, key, names)
        content = self._manifest(step, key)
        gone = [name for name in content["files"] if _within(name, names)] if content else []
        if content and gone:
            self._remote.files.pipe_file(self._of(step, key, BARE), json.dumps(list(names)).encode())
            for name in gone:
                self._remote.remove(self._file(step, key, content, name))

    @contextmanager
    def lease(self, step: str, key: str) -> Iterator[Path]:
        """For one process of this machine, and for one machine."""
        with self._here.lease(step, key) as folder, leased(self._remote, self._of(step, key, LEASE), step):
            yield folder

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Nothing is ever cleared away by `unused`."""
        yield

    @contextmanager
    def unused(self) -> Iterator[None]:
        """UserError: who builds on what is up there isn't known here."""
        raise UserError(f"store: {self.address} is cleared by its own tools; what a sweep still needs isn't known here")
        yield

    @contextmanager
    def kept(self, folder: Path) -> Iterator[None]:
        """Uploaded once the block ends; after a kill, when it ends the next time. Others' files come first."""
        self.bring(str(folder.relative_to(self.root)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNSENT).touch()
        try:
            yield
        finally:
            for path in folder.rglob("*"):
                if path.is_file() and path.name != UNSENT:
                    self.send(path)
            (folder / UNSENT).unlink()

    def send(self, file: Path) -> None:
        """Upload it."""
        name = file.relative_to(self.root).as_posix()
        self._remote.files.pipe_file(f"{self._under}/{name}", file.read_bytes())

    def bring(self, place: str) -> None:
        """What others left under it, in folders in which nothing waits to be sent from here."""
        self._remote.files.invalidate_cache()
        for path, facts in self._remote.files.find(f"{self._under}/{place}", detail=True).items():
            target = self.root / path.removeprefix(f"{self._under}/")
            if any((parent / UNSENT).exists() for parent in target.parents):
                continue
            when = facts.get("LastModified") or facts.get("created")
            stamp = when.timestamp() if isinstance(when, datetime) else time.time()
            if target.is_file() and target.stat().st_size == facts["size"] and target.stat().st_mtime >= stamp:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            self._remote.files.get_file(path, str(target))
            os.utime(target, (stamp, stamp))

    def _of(self, step: str, key: str, name: str) -> str:
        return f"{self._under}/{step}/{key}/{name}"

    def _file(self, step: str, key: str, content: dict[str, Any], name: str) -> str:
        return self._of(step, key, f"{content['upload']}/{name}")

    def _manifest(self, step: str, key: str) -> dict[str, Any] | None:
        found = self._remote.read(self._of(step, key, MANIFEST))
        return json.loads(found) if found else None

    def _gone(self, step: str, key: str) -> list[str]:
        """Names of files and folders that were let go."""
        return json.loads(self._remote.read(self._of(step, key, BARE)) or b"[]")

    def _drop(self, step: str, key: str, content: dict[str, Any]) -> None:
        for name in content["files"]:
            self._remote.remove(self._file(step, key, content, name))


def _cache(url: str) -> Path:
    """The folder of this machine, under XDG_CACHE_HOME; the same name on another server is another store."""
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return place / "pkt" / f"{url.rpartition('/')[2]}-{hashlib.sha256(f'{server} {url}'.encode()).hexdigest()[:8]}"


def _within(name: str, some: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}/") for one in some)
