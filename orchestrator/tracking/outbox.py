"""Records on disk until the lab book has them, so that a server that is down, slow or full costs no trial.

    outbox = Outbox(store / "outbox", side)     # `side` sends one record; what waits from before goes up first
    outbox.put(Record(key="sweep/trial", name="lora r8", metrics={"score": 0.5}))     # on disk, and back at once
    outbox.flush(20)                            # what is left then waits for the next outbox on this folder

One daemon thread sends the files in order and deletes each once it is sent. A crash in between sends it again: sides
send so that twice is once. Of several processes on one folder, one sends for all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Protocol

from orchestrator.tracking.run_record import Record, masked, one_line

LONGEST = 30.0  # seconds between two tries
IDLE = 5.0  # seconds between two looks at what a process that died may have left


class Refused(Exception):
    """A record that will not be taken as it is: the next ones go on, it waits for the next process."""


class Side(Protocol):
    """Who gets the records."""

    def send(self, record: Record) -> None:
        """Once it returns, the record is there; twice is as once."""

    def forget(self) -> None:
        """Somebody else has sent: what was known of the other end may be old."""


class Waiting(NamedTuple):
    """What has not gone up, and why not."""

    records: int
    reason: str


class Outbox:
    """A folder of records, and the thread that sends them."""

    def __init__(self, folder: Path, side: Side) -> None:
        self.folder = folder.absolute()
        self._side, self._name = side, uuid.uuid4().hex[:8]
        self._unwritten: list[Record] = []  # a full disk's, in memory
        self._refused: dict[str, str] = {}
        self._reason, self._pause, self._ended = "", 0.0, False
        self._writing, self._stir, self._moved = threading.Lock(), threading.Event(), threading.Event()
        self._last = max(map(number, self._files()), default=0)
        self._stir.set()  # what waits from before
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Write it down and return: nothing that is wrong with a server or a disk gets to the caller."""
        with self._writing:
            self._unwritten.append(record.clean())
            self._write_down()
        if not self._pause:
            self._stir.set()

    def keys(self) -> set[str]:
        """Of finished records that wait here: nobody has to put them again."""
        found = set()
        for name in self._files():
            try:
                document = json.loads((self.folder / name).read_text())
            except (OSError, ValueError):  # sent meanwhile, or not ours
                continue
            if document.get("status") == "FINISHED":
                found.add(document["key"])
        return found

    def waiting(self) -> Waiting:
        """How many are left, and what the last try met."""
        count = len(self._files()) + len(self._unwritten)
        return Waiting(count, (self._reason or next(iter(self._refused.values()), "")) if count else "")

    def flush(self, seconds: float) -> Waiting:
        """Wait until all that can be sent is sent, or the time is over."""
        until = time.monotonic() + seconds
        self._pause = 0.0
        self._stir.set()
        while self._ready() or self._unwritten:
            self._moved.clear()
            left = until - time.monotonic()
            if left <= 0:
                break
            self._moved.wait(min(left, 0.2))
        return self.waiting()

    def close(self, seconds: float = 0.0) -> Waiting:
        """Flush, and end the thread once its request has come back; nobody waits for that."""
        left = self.flush(seconds)
        self._ended = True
        self._stir.set()
        return left

    def _files(self) -> list[str]:
        try:
            names = [name for name in os.listdir(self.folder) if re.fullmatch(r"\d+-\w+\.json", name)]
        except OSError:
            return []
        return sorted(names, key=number)

    def _ready(self) -> list[str]:
        return [name for name in self._files() if name not in self._refused]

    def _write_down(self) -> None:
        """Aside, to disk, then under the next number and this process's name: no two take the same."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._unwritten:
                aside = self.folder / f".{self._name}"
                with aside.open("w") as file:
                    json.dump(asdict(self._unwritten[0]), file, default=str)
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(self.folder / f"{self._last + 1:06d}-{self._name}.json")
                self._last += 1
                self._unwritten.pop(0)
        except OSError as error:
            self._reason = f"{error.strerror}: {self.folder}"

    def _work(self) -> None:
        while True:
            self._stir.wait(self._pause or IDLE)
            self._stir.clear()
            if self._ended:
                return
            try:
                self._drain()
                self._reason, self._pause = "", 0.0
            except BlockingIOError:
                self._reason, self._pause = "another process is sending", 0.5
            except Exception as error:  # whatever it is, the record is kept and a trial goes on
                self._reason = one_line(error)
                self._pause = min(LONGEST, max(0.5, 2 * self._pause))
            self._moved.set()

    def _drain(self) -> None:
        with self._writing:
            self._write_down()
        if self._ready():
            self._send()
        if self._unwritten:  # a full disk has room again once what was sent is deleted
            raise OSError(self._reason)

    def _send(self) -> None:
        with self._alone():
            while names := self._ready():
                for name in names:
                    if self._ended:
                        return
                    try:
                        self._side.send(_read(self.folder / name))
                    except Refused as error:
                        self._refused[name] = masked(error)
                        continue
                    (self.folder / name).unlink()
                    self._moved.set()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """BlockingIOError while another process sends. The lock's file says who sent last."""
        with (self.folder / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.seek(0)
            if lock.read() != self._name:
                self._side.forget()
                lock.truncate(0)
                lock.write(self._name)
                lock.flush()
            yield


def number(name: str) -> int:
    """The place of a record's file among the others."""
    return int(name.partition("-")[0])


def _read(file: Path) -> Record:
    text = file.read_text()
    try:
        return Record(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise Refused(f"{file}: no record ({error})") from error
