"""What a comparison could find at all: told before a sweep, and after it."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import optimize, special

from orchestrator.verdict.estimates import Estimate

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a paired difference: of its mean from seed to seed, and from example to example, and of
    what is left in a single (seed, example).
    """

    seed: float
    example: float = 0.3
    both: float = 0.5

    def expected(self, seeds: int, examples: int) -> Estimate:
        """What is to be known of a mean difference of zero."""
        by_seeds = self.seed**2 / seeds + self.both**2 / (seeds * examples)
        total = by_seeds + self.example**2 / examples
        return Estimate(0.0, float(total**0.5), by_seeds / total, (seeds - 1, max(1, examples - 1)))


EXPECTED = tuple(Spread(seed) for seed in (0.02, 0.05, 0.1))  # before anything is known: what small LoRAs do


def smallest_effect(found: Estimate, comparisons: int = 1) -> float:
    """The true difference that is claimed in four of five sweeps like this one.

    At the hardest step of Holm's correction, and by the noncentral t distribution of the seeds' freedom; infinite with
    one seed.
    """
    if (freedom := found.freedom[0]) < 1:
        return float("inf")
    needed = found.needed(LEVEL / comparisons)

    def power(shift: float) -> float:
        return float(1 - special.nctdtr(freedom, shift, needed))

    high = needed
    while power(high) < POWER:  # in small steps: far beyond, the distribution's value is NaN
        high *= 1.25
    shift = optimize.brentq(lambda by: power(by) - POWER, 0, high)
    return float(shift * found.error)
