"""Progress on stderr: a moving bar for people, a line now and then for logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from orchestrator.every import every

LOG_SECONDS = 10.0
SOON = 1.0  # seconds without a word: what takes less needs none


class Terminal:
    """What a person sees of the work."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._tell: float | None = None  # when `doing` is next to be told; nothing is being done yet

    def track(self, items: Iterable[Any], what: str, total: int) -> Generator[Any, str | None, None]:
        """Progress through the items of one long step; a line that is sent back is the item's own."""
        with self.trials(what, total) as tick:
            for item in items:
                line = yield item
                tick(line or (item if isinstance(item, str) else ""))

    @contextmanager
    def trials(self, what: str, total: int, running: Callable[[], str] = lambda: "") -> Iterator[Callable[[str], None]]:
        """Progress through trials; what it yields takes each finished one's line. `running` tells of the others."""
        show = self._bar if self._console.is_terminal else self._log
        with show(what, total, running) as tick:
            yield tick

    @contextmanager
    def _bar(self, what: str, total: int, running: Callable[[], str]) -> Iterator[Callable[[str], None]]:
        columns = (TextColumn("{task.description:<24}"), BarColumn(10), MofNCompleteColumn(), TimeElapsedColumn())
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what a narrow screen has no room for is cut here
        with Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[line]}", table_column=rest),
            console=self._console,
            expand=True,
        ) as bar:
            task, last = bar.add_task(what, total=total, line=""), ""

            def look() -> None:
                bar.update(task, line="   ".join(filter(None, (last, running()))))

            def tick(line: str) -> None:
                nonlocal last
                last = line
                bar.advance(task)
                look()

            with every(SOON, look):
                yield tick

    @contextmanager
    def _log(self, what: str, total: int, running: Callable[[], str]) -> Iterator[Callable[[str], None]]:
        began = last = time.monotonic()
        count, unsaid = 0, ""

        def say(more: str = "") -> None:
            nonlocal last, unsaid
            last = time.monotonic()
            line = "   ".join(filter(None, (unsaid, more)))
            self._console.print(f"{what}: {count}/{total} after {last - began:.0f} s  {line}", soft_wrap=True)
            unsaid = ""

        def look() -> None:
            if time.monotonic() - last > (SOON if last == began else LOG_SECONDS):
                say(running())

        def tick(line: str) -> None:
            nonlocal count, unsaid
            count, unsaid = count + 1, line
            if count == total or time.monotonic() - last > LOG_SECONDS:
                say()

        with every(SOON, look):
            yield tick
        if unsaid:  # fewer than were counted on: where every setting failed, nothing is compared
            say()

    def warn(self, line: str) -> None:
        """Something to know, now."""
        self._console.print(f"warning: {line}", style="yellow", soft_wrap=True, markup=False)

    def doing(self, line: str) -> None:
        """How far something is that has no count: of all such lines one now and then, none of what is soon done."""
        now = time.monotonic()
        if self._tell is None:
            self._tell = now + SOON
        elif now >= self._tell:
            self._tell = now + LOG_SECONDS
            self.say(line)

    @contextmanager
    def lasting(self, line: str) -> Iterator[None]:
        """What is going on, soon, if the block isn't done by then and says nothing itself: imports take seconds."""
        timer = threading.Timer(SOON, self._unless_told, (line,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _unless_told(self, line: str) -> None:
        if self._tell is None:
            self._tell = time.monotonic() + LOG_SECONDS
            self.say(line)

    def say(self, line: str) -> None:
        """A line of what is going on."""
        self._console.print(line, soft_wrap=True, markup=False)
