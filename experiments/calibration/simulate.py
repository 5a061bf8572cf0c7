"""How often the verdict claims something where there is nothing, and where there is something.

    python experiments/calibration/simulate.py        # prints the table of NOTES.md, a quarter of an hour on two cores

Whole sweeps are drawn from a model of what makes scores differ, and judged by the product's own `judge`. An answer is
right with probability logistic(level + arm + seed + example + seed-and-example + arm-and-example), so that arms
share what makes an example hard, and seeds of an arm share what made that training go well. A null is planted by
giving all arms the same law; an effect by shifting transfer until its true mean is that much higher.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from orchestrator.verdict.estimates import Result
from orchestrator.verdict.power import Spread, smallest_effect
from orchestrator.verdict.verdict import Verdict, judge

ARMS = (
    "transfer", "lora", "pissa", "spectrum_control", "random_window", "shuffled_seeds", "olora", "orthogonal", "eva",
    "lora_ga", "distil",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What makes scores differ, as standard deviations on the logistic scale."""

    name: str
    arms: int = 4
    seeds: int = 6
    examples: int = 200
    level: float = 0.0
    seed: float = 0.5  # of an arm's training
    example: float = 1.5  # difficulty, which all arms share
    both: float = 0.5  # of a training and an example
    taste: float = 0.3  # of an arm and an example
    fails: float = 0.0  # share of trainings that go nowhere

    def scores(self, rng: np.random.Generator, shifts: Sequence[float]) -> list[Any]:
        """Of each arm: right or wrong, (seeds, examples)."""
        hard = rng.normal(0, self.example, self.examples)
        return [right(self.latent(rng, shift) + hard, rng) for shift in shifts]

    def latent(self, rng: np.random.Generator, shift: float, examples: int | None = None) -> NDArray[np.float64]:
        """An arm's own part of the logit, but for the examples' difficulty."""
        count = examples or self.examples
        training = rng.normal(0, self.seed, (self.seeds, 1)) - 30 * (rng.random((self.seeds, 1)) < self.fails)
        return (
            self.level
            + shift
            + training
            + rng.normal(0, self.taste, count)
            + rng.normal(0, self.both, (self.seeds, count))
        )


def right(logits: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Answers drawn from their logits."""
    return (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


def sweep(world: World, rng: np.random.Generator, shift: float = 0.0) -> Verdict:
    """One simulated sweep, judged."""
    drawn = world.scores(rng, (shift, *(0.0,) * (world.arms - 1)))
    rows = [
        Result(arm=arm, layers=None, structure=None, rank=8, scores=scores, seeds=tuple(range(world.seeds)))
        for arm, scores in zip(ARMS, drawn, strict=False)
    ]
    return judge(rows, "lora")


def true_mean(world: World, shift: float, draws: int = 400_000) -> float:
    """The share of right answers that such an arm has over all seeds and examples."""
    rng = np.random.default_rng(1)
    sd = (world.seed**2 + world.example**2 + world.both**2 + world.taste**2) ** 0.5
    logits = world.level + shift + sd * rng.standard_normal(draws)
    return float((1 / (1 + np.exp(-logits))).mean() * (1 - world.fails))


def shift_for(world: World, effect: float) -> float | None:
    """What to add to an arm's logit for its true mean to rise by `effect`, or to fall by a negative one.

    None where it has no room for so much.
    """
    level, end = true_mean(world, 0.0), math.copysign(12, effect)
    if abs(true_mean(world, end) - level) < abs(effect):
        return None
    return float(optimize.brentq(lambda shift: true_mean(world, shift) - level - effect, *sorted((0.0, end))))


def spread_of(world: World, shift: float = 0.0, runs: int = 300) -> Spread:
    """The standard deviations of a paired difference in this world, from many sweeps' mean squares."""
    rng = np.random.default_rng(2)
    seed, example, both = np.zeros((3, runs))
    for run in range(runs):
        one, other = world.scores(rng, (shift, 0.0))
        difference = one - other
        means, rows = difference.mean(0), difference.mean(1)
        left = difference - means - rows[:, None] + difference.mean()
        both[run] = (left**2).sum() / ((world.seeds - 1) * (world.examples - 1))
        seed[run] = rows.var(ddof=1) - both[run] / world.examples
        example[run] = means.var(ddof=1) - both[run] / world.seeds
    return Spread(*(float(max(part.mean(), 0.0) ** 0.5) for part in (seed, example, both)))


def claims(world: World, sweeps: int, shift: float = 0.0, seed: int = 0) -> tuple[float, float]:
    """Shares of sweeps with any claim, and with the claim that transfer is better than LoRA."""
    rng = np.random.default_rng(seed)
    anything = better = 0
    for _ in range(sweeps):
        found = sweep(world, rng, shift).comparisons
        anything += any(one.outcome in ("better", "worse") for one in found)
        better += next(one for one in found if one.against == "lora").outcome == "better"
    return anything / sweeps, better / sweeps


def told_effect(world: World) -> float:
    """What `pkt sweep --dry-run` would call the smallest effect, knowing this world's spreads.

    The spread is that of the effect's own world: an arm that is better has other variances, so it is told twice.
    """

    def told(shift: float) -> float:
        return smallest_effect(spread_of(world, shift).expected(world.seeds, world.examples), world.arms - 1)

    return told(shift_for(world, told(0.0)) or 0.0)


WORLDS = (
    World("usual"),
    World("steady trainings", seed=0.1),
    World("unsteady trainings", seed=1.5),
    World("one in six trainings fails", fails=1 / 6),
    World("examples alike", example=0.2),
    World("examples very unlike", example=3.0),
    World("strong interaction", both=2.0),
    World("arms good at different examples", taste=1.5),
    World("hard task", level=-3.0),
    World("easy task", level=3.0),
    World("ten seeds", seeds=10),
    World("fifty examples", examples=50),
    World("a thousand examples", examples=1000),
    World("a thousand, arms good at different ones", examples=1000, taste=1.5),
    World("eleven arms", arms=11),
    World("eleven arms, good at different examples", arms=11, taste=1.5),
    World("eleven arms, a thousand examples", arms=11, examples=1000, taste=1.5),
)


def main(sweeps: int = 2000) -> None:
    """Print the table."""
    print("| world | claims on nulls | told effect | found at it |\n|---|---|---|---|")
    for world in WORLDS:
        nothing, _ = claims(world, sweeps)
        effect = told_effect(world)
        shift = shift_for(world, effect)
        found = "no room for it" if shift is None else f"{claims(world, sweeps, shift, seed=1)[1]:.3f}"
        print(f"| {world.name} | {nothing:.3f} | {effect:.3f} | {found} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
