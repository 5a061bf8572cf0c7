"""A store that several machines and processes share: what is seen late, and who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.store import Store
from orchestrator.store.directory import held


def test_what_is_shown_late_is_waited_for(tmp_path: Path) -> None:
    """As NFS may show what another machine has put there: here somebody puts it there late."""
    store = Store(tmp_path)
    with store.writing("evaluate", "other", {}) as folder:
        (folder / "out").touch()

    def appear() -> None:
        until.wait(10)
        (tmp_path / "evaluate/other").rename(tmp_path / "evaluate/key")

    until = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        moved = pool.submit(appear)
        found = pool.submit(store.awaited, "evaluate", "key", 30)
        time.sleep(0.3)
        assert not found.done()
        until.set()
        moved.result()
        assert found.result(5) and store.find("evaluate", "key") == tmp_path / "evaluate/key"
    began = time.monotonic()
    assert store.awaited("evaluate", "never", 0.5) is False
    assert store.awaited("nothing of it", "never", 0.0) is False
    assert 0.5 <= time.monotonic() - began < 5


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOLCK, errno.ENOENT])
def test_a_lock_that_vanishes_was_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No NFS is at hand whose server could be made to say that: the call that would hear it is made to."""
    asked: list[int] = []

    def flock(file: Any, how: int) -> None:
        asked.append(how)
        if len(asked) <= 2:
            raise OSError(number, os.strerror(number))
        usual(file, how)

    usual = fcntl.flock
    monkeypatch.setattr("orchestrator.store.directory.fcntl.flock", flock)
    with held(tmp_path / "in" / "lock", "waiting"):
        with (tmp_path / "in" / "lock").open("a+") as lock, pytest.raises(BlockingIOError):
            usual(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(asked) == 3


def test_a_lock_that_can_never_be_had_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("orchestrator.store.directory.fcntl.flock", flock)
    monkeypatch.setattr("orchestrator.store.directory.POLL", 0.01)
    monkeypatch.setattr("orchestrator.store.directory.LATE", 0.1)
    with pytest.raises(OSError, match="No locks available"), held(tmp_path / "lock", "waiting"):
        pass


def test_whoever_clears_is_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, clearing, told = Store(tmp_path), threading.Event(), threading.Event()

    def clear() -> None:
        with store.unused():
            clearing.set()
            assert told.wait(30)

    def use() -> bool:
        with store.in_use():
            return told.is_set()

    with store.in_use(), store.in_use():
        with pytest.raises(UserError, match="a sweep or a run is at work in"), store.unused():
            pass
    with ThreadPoolExecutor(2) as pool:
        cleared = pool.submit(clear)
        assert clearing.wait(30)
        used = pool.submit(use)
        while "waiting for another process that clears the store" not in caplog.text:
            assert not used.done()
        told.set()
        assert used.result(30)
        cleared.result(30)
