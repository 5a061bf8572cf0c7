"""Which arm is better, and how sure that is: means with intervals over random seeds and examples.

    interval(scores)          # scores (seeds, examples) -> mean, low, high
    leaderboard(results, baseline="lora")

Seeds and examples are both samples, and crossed: every seed is scored on the same examples. An interval over seeds
alone would claim what another test set takes back, one over examples alone what another seed takes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """One leaderboard row's evidence: what was run, and its scores (seeds, examples)."""

    arm: str
    layers: str | None
    structure: str | None
    rank: int | None
    scores: Matrix
    modules: str | None = None
    lr: float | None = None
    lr_at_edge: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What names the row."""
        return (self.arm, self.layers, self.structure, self.modules, self.rank)


def interval(scores: Matrix, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and confidence limits of a (seeds, examples) matrix of scores or of paired differences.

    Two-way random effects without replication: the variance of the mean is (MS_seeds + MS_examples - MS_both) / (R·n),
    with Satterthwaite's degrees of freedom; never less than what either source alone gives. With one seed the interval
    is over examples only.
    """
    seeds, examples = scores.shape
    mean = float(scores.mean())
    if seeds * examples < 2 or np.ptp(scores) == 0:
        return mean, mean, mean
    by_example = seeds * np.var(scores.mean(0), ddof=1) if examples > 1 else 0.0
    if seeds == 1:
        variance, freedom = by_example / examples, examples - 1.0
    else:
        by_seed = examples * np.var(scores.mean(1), ddof=1)
        residual = scores - scores.mean(0) - scores.mean(1, keepdims=True) + mean
        both = float((residual**2).sum()) / max(1, (seeds - 1) * (examples - 1))
        total = by_seed + by_example - both
        spread = by_seed**2 / (seeds - 1) + both**2 / max(1, (seeds - 1) * (examples - 1))
        spread += by_example**2 / max(1, examples - 1)
        freedom = float(np.clip(total**2 / spread, min(seeds, examples) - 1, None)) if spread else seeds - 1.0
        variance = max(total, by_seed, by_example) / (seeds * examples)
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
    return mean, mean - half, mean + half


def share_interval(scores: Matrix, level: float = 0.95) -> tuple[float, float, float]:
    """The same for scores between 0 and 1; where all are equal, Clopper and Pearson's limits for that many examples."""
    mean, low, high = interval(scores, level)
    if low == high and mean in (0.0, 1.0):
        margin = float(1 - ((1 - level) / 2) ** (1 / scores.shape[1]))
        return mean, mean - margin * mean, mean + margin * (1 - mean)
    return mean, max(0.0, low), min(1.0, high)


def leaderboard(results: Sequence[Result], baseline: str) -> list[dict[str, Any]]:
    """Rows, best first, each with its interval and its paired difference from the baseline of the same rank.

    A row without such a partner (the baseline itself, the untouched models) has a null difference.
    """
    partners = {result.rank: result for result in results if result.arm == baseline}
    rows = []
    for result in results:
        mean, low, high = share_interval(result.scores)
        partner = partners.get(result.rank)
        delta: float | None = None
        limits: list[float] | None = None
        if partner is not None and partner is not result:
            seeds = min(len(result.scores), len(partner.scores))
            delta, *limits = interval(result.scores[:seeds] - partner.scores[:seeds])
        rows.append(
            {
                "arm": result.arm,
                "layers": result.layers,
                "structure": result.structure,
                "modules": result.modules,
                "rank": result.rank,
                "lr": result.lr,
                "lr_at_edge": result.lr_at_edge,
                "mean": mean,
                "ci95": [low, high],
                "delta": delta,
                "delta_ci95": limits,
                "seeds": len(result.scores),
            }
        )
    return sorted(rows, key=lambda row: -row["mean"])
