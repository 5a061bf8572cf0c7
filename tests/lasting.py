"""Ranks that last from one test to the next: each group's processes would import all libraries anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cluster import ranks
from orchestrator.cluster.ranks import Placement


class Lasting:
    """Stands for `ranks._group`: while `on`, a group is the one before where that has as many ranks.

    One is held at a time. It ends where another size is asked for, or one of its own, or where its work ends early.
    """

    def __init__(self) -> None:
        self.on = False
        self._own, self._held = ranks._group, ExitStack()
        self._actors: list[Any] = []

    def end(self) -> None:
        self._actors = []
        self._held.close()

    @contextmanager
    def group(self, placement: Placement, logs: Path) -> Iterator[list[Any]]:
        if not self.on or placement.ranks != len(self._actors):
            self.end()
        if not self.on:
            with self._own(placement, logs) as actors:
                yield actors
            return
        self._actors = self._actors or self._held.enter_context(self._own(placement, logs))
        try:
            yield self._actors
        except BaseException:
            self.end()
            raise
