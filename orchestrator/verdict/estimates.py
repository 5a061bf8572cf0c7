"""Which arm is better, and how sure that is: means with intervals over random seeds and examples.

    interval(scores)          # scores (seeds, examples) -> mean, low, high
    leaderboard(results, baseline="lora")

Seeds and examples are both samples, and crossed: every seed is scored on the same examples. An interval over seeds
alone would claim what another test set takes back, one over examples alone what another seed takes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from orchestrator.verdict.asked import BOUNDS, NEEDED

Matrix = NDArray[np.float64]
PLACE = ("layers", "structure", "modules")  # where in the student an arm that extracts puts something
TINY = 1e-100  # as a p-value: smaller ones are not told apart


@dataclass(frozen=True)
class Beside:
    """A row's scores (seeds, examples) on a task that it was not trained on, and the examples' ids."""

    seeds: tuple[int, ...]
    scores: Matrix
    ids: tuple[str, ...] = ()
    also: dict[str, float] = field(default_factory=dict)  # means of the figures beside the score


@dataclass(frozen=True)
class Result:
    """One leaderboard row's evidence: what was run, and its scores (seeds, examples).

    `seeds` names the rows of `scores`; a failed trial's is missing. `other` are the further axes of its sweep.
    """

    arm: str
    layers: str | None
    structure: str | None
    rank: int | None
    scores: Matrix
    seeds: tuple[int, ...]
    modules: str | None = None
    lr: float | None = None
    lr_at_edge: bool = False
    validation: tuple[float, float] | None = None  # score and minus loss there, of the learning rate that was taken
    cut: float = 0.0  # share of its answers that had not ended when they had as many tokens as they may have
    clipped: float | None = None  # share of its optimizer steps whose gradient was cut down, a mean over its trainings
    grad_norm: float | None = None  # their median before that, likewise
    other: dict[str, Any] = field(default_factory=dict)
    also: dict[str, float] = field(default_factory=dict)  # means of the figures beside its score, over what has them
    beside: dict[str, Beside] = field(default_factory=dict)  # by task
    before: float | None = None  # mean score before any step, where it isn't the untouched student's
    seconds: tuple[float, float] | None = None  # of a trial: its own training, and all that it was made from

    def on(self, task: str) -> Result | None:
        """The row as if a further task were its own; None where it has no scores there."""
        there = self.beside.get(task)
        return replace(self, scores=there.scores, seeds=there.seeds) if there and there.seeds else None

    def same(self, other: Result, *names: str) -> bool:
        """Whether rank, these fields and the further axes that mean something to both agree: a fair partner's."""
        both = self.other.keys() & other.other.keys()
        alike = all(self.other[name] == other.other[name] for name in both)
        return alike and all(getattr(self, name) == getattr(other, name) for name in ("rank", *names))


@dataclass(frozen=True)
class Estimate:
    """A mean of a (seeds, examples) matrix, how far it may be off, and how well that is known."""

    mean: float
    error: float = 0.0  # its standard error
    by_seeds: float = 1.0  # share of its variance that differs from seed to seed; the rest does from example to example
    freedom: tuple[float, float] = (1.0, 1.0)  # degrees of freedom of these two parts

    def needed(self, level: float) -> float:
        """How many standard errors away from zero is significant, two-sided.

        Cochran and Cox (1950): the t of either part, weighted by its variance. Satterthwaite's one freedom for both is
        itself estimated from the few seeds, and claims up to 1.9 times too often at the smaller levels of Holm's steps.
        """
        seeds, examples = (-float(special.stdtrit(freedom, level / 2)) for freedom in self.freedom)
        return self.by_seeds * seeds + (1 - self.by_seeds) * examples

    def limits(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence limits."""
        half = self.needed(1 - level) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference: the level at which it is just significant."""
        if not self.error:
            return float(self.mean == 0)
        away = abs(self.mean) / self.error
        if self.needed(TINY) < away:
            return TINY
        return float(10 ** optimize.brentq(lambda power: self.needed(10**power) - away, np.log10(TINY), 0))


def estimate(scores: Matrix) -> Estimate:
    """The mean of a (seeds, examples) matrix of scores or of paired differences, over seeds and examples to come.

    Two-way random effects without replication: the variance of the mean is (MS_seeds + MS_examples - MS_both) / (R·n),
    never less than what either source alone gives. With one seed it is over examples only.
    """
    seeds, examples = scores.shape
    mean, freedom = float(scores.mean()), (max(1.0, min(seeds, examples) - 1.0), max(1.0, examples - 1.0))
    if seeds * examples < 2 or np.ptp(scores) == 0:
        return Estimate(mean, freedom=freedom)
    by_example = seeds * np.var(scores.mean(0), ddof=1) if examples > 1 else 0.0
    if seeds == 1:
        return Estimate(mean, float(np.sqrt(by_example / examples)), 0.0, freedom)
    by_seed = examples * np.var(scores.mean(1), ddof=1)
    residual = scores - scores.mean(0) - scores.mean(1, keepdims=True) + mean
    both = float((residual**2).sum()) / max(1, (seeds - 1) * (examples - 1))
    of_examples = max(by_example - both, 0.0)
    share = by_seed / (by_seed + of_examples) if by_seed else 0.0
    variance = max(by_seed + of_examples, by_example) / (seeds * examples)
    return Estimate(mean, float(np.sqrt(variance)), share, freedom)


def interval(scores: Matrix, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and confidence limits."""
    found = estimate(scores)
    return found.mean, *found.limits(level)


def difference(result: Result, partner: Result) -> Estimate | None:
    """The paired difference, over the random seeds that both have; None where they share none.

    Where every example differs alike (in most cases: not at all), the error is that of never having seen it otherwise.
    """
    seeds = [seed for seed in result.seeds if seed in partner.seeds]
    if not seeds:
        return None
    own, other = (one.scores[[one.seeds.index(seed) for seed in seeds]] for one in (result, partner))
    found = estimate(own - other)
    if found.error:
        return found
    return replace(found, error=_unseen(own.shape[1]) / found.needed(0.05))


def _unseen(examples: int, level: float = 0.95) -> float:
    """Clopper and Pearson's limit for a share of which none was seen."""
    return float(1 - ((1 - level) / 2) ** (1 / examples))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values that may each be held against the level, whichever of the hypotheses hold (Holm, 1979)."""
    result, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        result[place] = least
    return result


def share_interval(scores: Matrix, level: float = 0.95) -> tuple[float, float, float]:
    """The same, within 0 and 1 where all scores are; where those are equal, Clopper and Pearson's limits."""
    mean, low, high = interval(scores, level)
    if scores.min() < 0 or scores.max() > 1:  # a log-likelihood, say: no share
        return mean, low, high
    if low == high and mean in (0.0, 1.0):
        margin = _unseen(scores.shape[1], level)
        return mean, mean - margin * mean, mean + margin * (1 - mean)
    return mean, max(0.0, low), min(1.0, high)


def leaderboard(results: Sequence[Result], baseline: str) -> list[dict[str, Any]]:
    """Rows, best first, each with its interval and its paired difference from the baseline.

    The partner is the baseline's row of the same rank and the same further axes. Ways that are judged by a control of
    their own have a second one: its row, of the same layers, structure and modules. Where there is none, or for the
    models that only bound the scale, the difference is null. Where some arm does something before any step, every row
    says what it scored then: others, as the untouched student.
    """
    rows, untouched = [], next((float(one.scores.mean()) for one in results if one.arm == "student"), None)
    injected = any(one.before is not None for one in results)
    for result in results:
        mean, low, high = share_interval(result.scores)
        trained = result.arm not in BOUNDS
        delta = _against(result, [one for one in results if trained and one.arm == baseline and result.same(one)])
        controls = [one for one in results if one.arm == NEEDED.get(result.arm) and result.same(one, *PLACE)]
        control = _against(result, controls)
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
                "delta": delta.mean if delta else None,
                "delta_ci95": list(delta.limits()) if delta else None,
                "control_delta": control.mean if control else None,
                "control_ci95": list(control.limits()) if control else None,
                "seeds": len(result.scores),
                "cut": result.cut,
                "clipped": result.clipped,
                "grad_norm": result.grad_norm,
                "seconds": result.seconds[0] if result.seconds else None,
                "seconds_before": result.seconds[1] if result.seconds else None,
                **({"before": _before(result, untouched)} if injected else {}),
                **({"other": result.other} if result.other else {}),
                **({"also": result.also} if result.also else {}),
            }
        )
    return sorted(rows, key=lambda row: -row["mean"])


def _before(result: Result, untouched: float | None) -> float | None:
    if result.arm in BOUNDS:
        return None
    return untouched if result.before is None else result.before


def told_apart_by(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """What a leaderboard shows beside its usual columns, or rows look alike: of its own fields, and of `other`."""
    modules = ["modules"] if len({row["modules"] for row in rows} - {None}) > 1 else []
    return modules, list(dict.fromkeys(key for row in rows for key in row.get("other", {})))


def _against(result: Result, partners: list[Result]) -> Estimate | None:
    """The difference from the one partner; None where it is the row itself, or where there is not just one."""
    return difference(result, partners[0]) if len(partners) == 1 and partners[0] is not result else None
