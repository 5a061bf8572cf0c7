"""How often a verdict with further tasks, or with seeds of several tasks, claims what isn't so, and finds what is.

    cd experiments && python -m calibration.further       # prints both further tables of NOTES.md

The sweeps are those of simulate.py, judged by the product's own `costs` and `judge`. On a further task the untouched
student answers once, by the law of a training that changed nothing there: the same mean over seeds and examples, and
what an arm's training makes of an example at random is the student's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from calibration.simulate import World, right, shift_for

from orchestrator.recipe import SEEDS
from orchestrator.report.cross import Crossed, crossed
from orchestrator.verdict.cost import MARGIN, Cost, costs
from orchestrator.verdict.estimates import Beside, Result
from orchestrator.verdict.verdict import ENOUGH_SEEDS, Verdict, judge

ARMS = ("transfer", "lora", "spectrum_control")
SEEDED = ("transfer", "spectrum_control")  # arms that a seeds' task means something to
CHANGED = ("forgot", "gained")


def row(arm: str, world: World, scores: np.ndarray, **fields: object) -> Result:
    """A leaderboard row of all seeds."""
    return Result(arm, None, None, 8, scores, tuple(range(world.seeds)), **fields)


def elsewhere(world: World, rng: np.random.Generator, shifts: Sequence[Sequence[float]]) -> list[Cost]:
    """What a sweep's arms cost; `shifts`: of each further task, what each arm's training adds to the logit there."""
    untouched, trained = {}, {arm: {} for arm in ARMS}
    own = (world.seed**2 + world.both**2 + world.taste**2) ** 0.5
    for place, by_arm in enumerate(shifts):
        task, hard = f"task {place}", rng.normal(0, world.example, world.examples)
        before = world.level + hard + rng.normal(0, own, (1, world.examples))
        untouched[task] = Beside((0,), right(before, rng))
        for arm, shift in zip(ARMS, by_arm, strict=True):
            there = right(world.latent(rng, shift) + hard, rng)
            trained[arm][task] = Beside(tuple(range(world.seeds)), there)
    nothing = np.zeros((world.seeds, 1))  # their own task's scores, which costs don't look at
    chosen = {arm: row(arm, world, nothing, beside=beside) for arm, beside in trained.items()}
    student = Result("student", None, None, None, nothing[:1], (0,), beside=untouched)
    return costs([student, *chosen.values()], chosen, margin=MARGIN, enough=ENOUGH_SEEDS)


def paid(world: World, tasks: int, sweeps: int, seed: int = 0) -> dict[str, float]:
    """Shares: of answers that change where no mean does; of sweeps with any claim of a change there, and with any of
    none where every row lost just the margin; of a loss of two margins that is found, and of rows without a change.
    """
    rng = np.random.default_rng(seed)
    one, two = (shift_for(world, -by * MARGIN) for by in (1, 2))
    assert one is not None and two is not None
    changed = lost = within = changes = 0.0
    for _ in range(sweeps):
        found = elsewhere(world, rng, [[0.0] * len(ARMS)] * tasks)
        changed += any(cost.outcome in CHANGED for cost in found)
        within += np.mean([cost.outcome == "forgot nothing" for cost in found])
        changes += np.mean([cost.flips.lost + cost.flips.won for cost in found if cost.flips])
        found = elsewhere(world, rng, [[one] * len(ARMS)] * tasks)
        lost += any(cost.outcome == "forgot nothing" for cost in found)
    forgot = 0
    for _ in range(sweeps // 2):
        first, *_ = elsewhere(world, rng, [[two, 0.0, 0.0], *[[0.0] * len(ARMS)] * (tasks - 1)])
        forgot += first.outcome == "forgot"
    return {
        "changes": changes / sweeps,
        "forgot or gained": changed / sweeps,
        "forgot nothing": lost / sweeps,
        "loss found": forgot / (sweeps // 2),
        "none found": within / sweeps,
    }


def seeded(world: World, rng: np.random.Generator, differ: float = 0.0) -> tuple[Verdict, list[Crossed]]:
    """A sweep of four seeds' tasks, scored on its own task and on three more; nothing is anywhere better by its arm.

    `differ`: the standard deviation, on the logistic scale, of what a seeds' task is worth, to transfer and to its
    control alike. Each row has a validation score of its own training and examples, by which the verdict chooses.
    """
    worth, scored = rng.normal(0, differ, 4), ("own", "a", "b", "c")
    hard = {task: rng.normal(0, world.example, world.examples) for task in (*scored, "validation")}
    once, rows = replace(world, seeds=1), []
    for arm, seeds in [("lora", None), *((arm, place) for arm in SEEDED for place in range(4))]:
        shift = 0.0 if seeds is None else float(worth[seeds])
        there = {task: right(world.latent(rng, shift) + hard[task], rng) for task in scored}
        tuned = right(once.latent(rng, shift) + hard["validation"], rng).mean()
        rows.append(
            row(arm, world, there["own"], validation=(float(tuned), 0.0),
                other={} if seeds is None else {SEEDS: f"seeds {seeds}"},
                beside={task: Beside(tuple(range(world.seeds)), there[task]) for task in scored[1:]})
        )  # fmt: skip
    tried = dict.fromkeys(ARMS, 4)  # LoRA by as many learning rates
    return judge(rows, "lora", tried=tried, repeats=world.seeds), crossed(rows, "lora", "own")


def by_seeds(world: World, differ: float, sweeps: int, seed: int = 0) -> dict[str, float]:
    """Shares of sweeps with a claim of the verdict, with one that tells transfer from its control, and with a cell of
    the report's table whose interval leaves zero out; and the share of such cells.
    """
    rng = np.random.default_rng(seed)
    anything = control = cell = cells = 0.0
    for _ in range(sweeps):
        told, table = seeded(world, rng, differ)
        claimed = [one.against for one in told.comparisons if one.outcome in ("better", "worse")]
        anything, control = anything + bool(claimed), control + ("spectrum_control" in claimed)
        outside = [low > 0 or high < 0 for low, high in (one.ci95 for one in table)]
        cell, cells = cell + any(outside), cells + np.mean(outside)
    return {name: count / sweeps for name, count in
            {"any claim": anything, "of its control": control, "any cell": cell, "cells": cells}.items()}  # fmt: skip


FURTHER = (  # how much of what a training makes of an answer is chance: little where examples are very unlike
    World("usual"),
    World("few answers change", seed=0.2, example=10.0),
    World("few change, trainings unsteady", seed=2.0, example=10.0),
    World("hardly any change", seed=0.2, example=100.0),
    World("hardly any, arms change others", seed=0.2, example=50.0, taste=3.0, both=2.0),
    World("nearly all right", level=10.0, seed=0.2, example=3.0, taste=3.0),
)
SIZES = [(200, 2), (1000, 2)]  # test rows, further tasks
MORE = {"hardly any change": [(200, 4), (1000, 4)]}
SEEDED_WORLDS = (
    (World("usual"), 0.0),
    (World("unsteady trainings", seed=1.5), 0.0),
    (World("a thousand examples", examples=1000), 0.0),
    (World("usual, seeds' tasks differ by 0.2"), 0.2),
    (World("usual, seeds' tasks differ by 0.5"), 0.5),
)


def main(sweeps: int = 1000) -> None:
    """Print both tables."""
    print("| world | rows | tasks | changes | false change | false none | loss found | none found |")
    print("|---" * 8 + "|")
    for world in FURTHER:
        for examples, tasks in SIZES + MORE.get(world.name, []):
            told = paid(replace(world, examples=examples), tasks, sweeps)
            print(f"| {world.name} | {examples} | {tasks} | {_figures(told)} |", flush=True)
    print("\n| world | any claim | transfer and its control | any cell | cells |\n" + "|---" * 5 + "|")
    for world, differ in SEEDED_WORLDS:
        print(f"| {world.name} | {_figures(by_seeds(world, differ, 2 * sweeps))} |", flush=True)


def _figures(told: dict[str, float]) -> str:
    return " | ".join(f"{share:.3f}" for share in told.values())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
