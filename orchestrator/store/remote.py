"""What is asked of an object store besides reading and writing: to be the first to write a file, and a lease by that.

    remote.first(path, content)                   # False where somebody else has written it
    with leased(remote, path, "measure"): ...     # one at a time, and a holder that died isn't waited for

A lease saves work and guards nothing: of two that believe to have it, the first to publish wins.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.every import every

BEAT, DEAD = 10.0, 60.0  # seconds: between two signs of life, and without any until somebody else takes over
TRIES = 20  # to write what must be the first


@dataclass(frozen=True)
class Remote:
    """A file system of fsspec's."""

    files: Any
    beat: float = BEAT
    dead: float = DEAD

    def read(self, path: str) -> bytes | None:
        """The file, None where there is none; never by a listing."""
        try:
            return self.files.cat_file(path)
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        """If it is there."""
        with suppress(FileNotFoundError):
            self.files.rm_file(path)

    def first(self, path: str, content: bytes) -> bool:
        """Write it unless there is one, whoever writes at the same moment: on S3 by If-None-Match.

        What is there may be this very content: where an answer was lost, the libraries have sent it a second time.
        """
        for left in reversed(range(TRIES)):
            try:
                self.files.pipe_file(path, content, mode="create")
                return True
            except OSError as error:
                if not _refused(error) or not left:
                    raise
            there = self.read(path)
            if there is not None:
                return there == content
            time.sleep(self.beat / 10)  # it was removed, or is being written, at this moment
        raise AssertionError


@contextmanager
def leased(remote: Remote, path: str, what: str) -> Iterator[None]:
    """Hold the lease while the block lasts; others are told that they wait for whoever is at `what`."""
    mine, beats = uuid.uuid4().hex, itertools.count(1)
    _take(remote, path, mine, what)

    def live() -> None:
        with suppress(Exception):  # the next may come through; without any, somebody else takes over
            remote.files.pipe_file(path, _lease(mine, next(beats)))

    try:
        with every(remote.beat, live):
            yield
    finally:
        if mine.encode() in (remote.read(path) or b""):
            remote.remove(path)


def _take(remote: Remote, path: str, mine: str, what: str) -> None:
    seen, since, told = None, time.monotonic(), False
    while not remote.first(path, _lease(mine, 0)):
        found = remote.read(path)
        if found != seen:
            seen, since = found, time.monotonic()
        elif found and time.monotonic() - since > remote.dead:  # by this clock alone: no two agree
            remote.remove(path)
            continue
        if not told:
            logging.getLogger("pkt").warning("waiting for another process that is at the same step: %s", what)
        told = True
        time.sleep(remote.beat / 10)


def _lease(holder: str, beats: int) -> bytes:
    return json.dumps({"holder": holder, "beats": beats}).encode()


def _refused(error: OSError) -> bool:
    """Whether a server says that there is one, or that another writes or removes it now; S3's servers differ in how."""
    answer = getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status in (409, 412)
