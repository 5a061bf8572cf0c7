"""What a comparison could find at all: told before a sweep, and after it."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a paired difference: of its mean from seed to seed, and from example to example, and of
    what is left in a single (seed, example).
    """

    seed: float
    example: float = 0.3
    both: float = 0.5

    def error(self, seeds: int, examples: int) -> float:
        """The standard error of the mean difference."""
        parts = self.seed**2 / seeds + self.example**2 / examples + self.both**2 / (seeds * examples)
        return float(parts**0.5)


EXPECTED = tuple(Spread(seed) for seed in (0.02, 0.05, 0.1))  # before anything is known: what small LoRAs do


def smallest_effect(error: float, freedom: float, comparisons: int = 1) -> float:
    """The true difference that is claimed in four of five sweeps like this one.

    At the hardest step of Holm's correction, and by the noncentral t distribution; infinite with one seed.
    """
    if freedom < 1:
        return float("inf")
    needed = stats.t.ppf(1 - LEVEL / comparisons / 2, freedom)
    shift = optimize.brentq(lambda by: stats.nct.sf(needed, freedom, by) - POWER, 0, needed * 4 + 10)
    return float(shift * error)
