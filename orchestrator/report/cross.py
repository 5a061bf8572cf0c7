"""Seeds' task by scored task: what a teacher that was measured by one task's seeds is worth on each.

    for one in crossed(found, "lora", "gsm8k"): print(one.arm, one.seeds, one.task, one.delta, one.ci95)

The paper's table (Seeking Neural Nuggets, seeds of other tasks), as differences from the baseline: plain LoRA has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.report.evidence import Heat
from orchestrator.verdict.estimates import Result, difference

SEEDS = "measure.seeds"


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
    partners = [one for one in found if one.arm == baseline and result.same(one)]
    for name, own in {task: result, **_elsewhere(result)}.items():
        other = {task: partners[0], **_elsewhere(partners[0])}.get(name) if partners else None
        both = difference(own, other) if other else None
        if both:
            yield Crossed(result.arm, str(result.other[SEEDS]), name, both.mean, both.limits())


def _elsewhere(result: Result) -> dict[str, Result]:
    """The row as if the further tasks were its own."""
    return {
        name: replace(result, scores=there.scores, seeds=there.seeds)
        for name, there in result.beside.items()
        if len(there.seeds)
    }


def cross_heats(cells: Sequence[Crossed]) -> list[Heat]:
    """A panel an arm: seeds' tasks downwards, scored tasks along. Of several rows for a cell, their mean."""
    heats = []
    for arm in dict.fromkeys(one.arm for one in cells):
        mine = [one for one in cells if one.arm == arm]
        seeds, tasks = (list(dict.fromkeys(getattr(one, name) for one in mine)) for name in ("seeds", "task"))
        values = [
            [float(np.mean([one.delta for one in mine if (one.seeds, one.task) == (down, along)] or np.nan))
             for along in tasks] for down in seeds
        ]  # fmt: skip
        heats.append(Heat(arm, tasks, [f"seeds of {name}" for name in seeds], np.array(values)))
    return heats
