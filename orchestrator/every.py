"""Something that happens now and then beside what a process is at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call it again and again until the block ends, however long that is at something else."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(seconds):
            call()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
