"""How a training's rows are divided into optimizer steps, and a step's into what goes through the student at once."""

from __future__ import annotations

import math

TOKENS_AT_ONCE = 2048  # through the student in one forward pass: a 7B student then fits into 80 GB


def steps_of(examples: int, batch: int, epochs: float) -> int:
    """Optimizer steps of a training."""
    return math.ceil(math.ceil(examples / batch) * epochs)


def fitting(longest: int, batch: int, micro: int | None = None, ranks: int = 1) -> int:
    """The largest part of a batch that the ranks of a training take at once: gradients add up to the same.

    Of it each has at most `micro` rows, or at most TOKENS_AT_ONCE padded tokens, or a single row.
    """

    def fits(rows: int) -> bool:
        return rows == 1 or (rows <= micro if micro else rows * longest <= TOKENS_AT_ONCE)

    return max(part for part in range(1, batch + 1) if batch % part == 0 and fits(math.ceil(part / ranks)))
