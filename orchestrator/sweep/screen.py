"""What the work tells a person, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Screen(Protocol):
    """What a person sees of the work."""

    def track(self, items: Iterable[Any], what: str, total: int) -> Generator[Any, str | None, None]:
        """Progress through the items of one long step."""

    def trials(
        self, what: str, total: int, running: Callable[[], str]
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Progress through trials; what it yields takes each finished one's line. `running` tells of the others."""

    def warn(self, line: str) -> None:
        """Something to know, now."""

    def say(self, line: str) -> None:
        """How far it is."""
