"""Progress on stderr: a moving bar for people, a line now and then for logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

LOG_SECONDS = 10.0
SOON = 1.0  # seconds without a word: what takes less needs none


class Terminal:
    """What a person sees of the work."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._silent = time.monotonic() + SOON - LOG_SECONDS  # since when; the first line comes after SOON

    def track(self, items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        """Progress through the items of one long step."""
        with self.trials(what, total) as tick:
            for item in items:
                yield item
                tick(item if isinstance(item, str) else "")

    @contextmanager
    def trials(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """Progress through trials; what it yields takes each finished one's line."""
        began = last = time.monotonic()
        count = 0
        if not self._console.is_terminal:
            unsaid = ""

            def say() -> None:
                nonlocal last, unsaid
                last = time.monotonic()
                self._console.print(f"{what}: {count}/{total} after {last - began:.0f} s  {unsaid}", soft_wrap=True)
                unsaid = ""

            def log(line: str) -> None:
                nonlocal count, unsaid
                count, unsaid = count + 1, line
                if count == total or time.monotonic() - last > LOG_SECONDS:
                    say()

            yield log
            if unsaid:  # fewer than were counted on: where every setting failed, nothing is compared
                say()
            return
        columns = (TextColumn("{task.description:<24}"), BarColumn(10), MofNCompleteColumn(), TimeElapsedColumn())
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what a narrow screen has no room for is cut here
        with Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[line]}", table_column=rest),
            console=self._console,
            expand=True,
        ) as bar:
            task = bar.add_task(what, total=total, line="")
            yield lambda line: bar.update(task, advance=1, line=line)

    def warn(self, line: str) -> None:
        """Something to know, now."""
        self._console.print(f"warning: {line}", style="yellow", soft_wrap=True, markup=False)

    def doing(self, line: str) -> None:
        """How far something is that has no count: of all such lines one now and then, none of what is soon done."""
        if (now := time.monotonic()) - self._silent >= LOG_SECONDS:
            self._silent = now
            self.say(line)

    def say(self, line: str) -> None:
        """A line of what is going on."""
        self._console.print(line, soft_wrap=True, markup=False)
