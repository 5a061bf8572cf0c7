"""How a training's rows are divided into optimizer steps, and a step's into what goes through the student at once."""

from __future__ import annotations

import math

TOKENS_AT_ONCE = 2048  # through the student in one forward pass: a 7B student then fits into 80 GB


def steps_of(examples: int, batch: int, epochs: float) -> int:
    """Optimizer steps of a training."""
    return math.ceil(math.ceil(examples / batch) * epochs)


def fitting(longest: int, batch: int) -> int:
    """The largest part of a batch with at most TOKENS_AT_ONCE padded tokens: gradients add up to the same."""
    return max(
        part for part in range(1, batch + 1) if batch % part == 0 and (part == 1 or part * longest <= TOKENS_AT_ONCE)
    )
