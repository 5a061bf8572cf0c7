"""How an answer is judged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What counts as right, in lm-eval's terms: a greedy answer equal to gold, or the likeliest choice."""

    kind: Literal["exact_match", "multiple_choice"]
    filter_name: str
    pattern: str | None = None  # the answer is group 1 of its last match; without one, the stripped output
    max_new_tokens: int = 64
    ignore: tuple[str, ...] = ()  # regexes removed from answer and gold before they are compared

    def __post_init__(self) -> None:
        # With no group lm-eval's filter takes the whole match, with several the first that is not empty.
        if self.pattern is not None and re.compile(self.pattern).groups != 1:
            raise ValueError(f"pattern {self.pattern!r} must have exactly one group, the answer")
