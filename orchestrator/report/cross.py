"""Seeds' task by scored task: what a teacher that was measured by one task's seeds is worth on each.

    for one in crossed(found, "lora", "gsm8k"): print(one.arm, one.seeds, one.task, one.delta, one.ci95)

The paper's table (Seeking Neural Nuggets, seeds of other tasks), as differences from the baseline: plain LoRA has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.recipe import SEEDS
from orchestrator.verdict.estimates import Result, difference


@dataclass(frozen=True)
class Crossed:
    """An arm by one task's seeds, on one task, against the baseline there."""

    arm: str
    seeds: str
    task: str
    delta: float
    ci95: tuple[float, float]


def crossed(found: Sequence[Result], baseline: str, task: str) -> list[Crossed]:
    """Every cell; `task` is the one that was trained. Nothing where seeds were no axis."""
    return [cell for one in found if SEEDS in one.other for cell in _cells(one, found, baseline, task)]


def _cells(result: Result, found: Sequence[Result], baseline: str, task: str) -> Iterator[Crossed]:
    partner = next((one for one in found if one.arm == baseline and result.same(one)), None)
    for name in (task, *result.beside):
        own, other = (one and (one if name == task else one.on(name)) for one in (result, partner))
        both = difference(own, other) if own and other else None
        if both:
            yield Crossed(result.arm, str(result.other[SEEDS]), name, both.mean, both.limits())
