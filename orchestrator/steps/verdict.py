"""Whether it helped: a claim that a reviewer would accept, or none.

    told = judge(results, Question(arm="transfer", against=("lora", "spectrum_control")))
    told.outcome        # "helped", "not the teacher", "hurt", "can't tell", "described"

Every arm is represented by its settings of best validation score, so that the test split is looked at once and no row
is picked by its test score. The unit is the random seed: a bootstrap nested in three seeds claims 17 % of the time
where there is nothing, a permutation over examples 47 %. p-values are corrected by Holm's method for all comparisons
that were asked about, and with fewer than six seeds nothing is claimed at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy import optimize, stats

from orchestrator.steps.compare import BOUNDS, Estimate, Result, difference

ENOUGH_SEEDS = 6
LEVEL, POWER = 0.05, 0.8
CONTROLS = {  # arms that differ from transfer in one thing alone, and what that is
    "spectrum_control": "random directions with the teacher's singular values",
    "random_window": "windows at random places of the same layers",
    "shuffled_seeds": "sensitivities of seed examples with each other's answers",
}
Outcome = Literal["better", "worse", "can't tell", "described"]


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


@dataclass(frozen=True)
class Question:
    """What was asked before anything was seen: does `arm` do better than each of `against`?"""

    arm: str
    against: tuple[str, ...]

    @classmethod
    def of(cls, arms: Sequence[str], baseline: str) -> Question:
        """Transfer against every other arm of the sweep; without transfer, each other arm against the baseline."""
        trained = [arm for arm in dict.fromkeys(arms) if arm not in BOUNDS]
        arm = "transfer" if "transfer" in trained else baseline
        others = [other for other in trained if other != arm]
        return cls(arm, tuple(sorted(others, key=lambda other: (other != baseline, other not in CONTROLS))))


@dataclass(frozen=True)
class Comparison:
    """One arm against another, each at the settings that were chosen for it."""

    against: str
    delta: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    seeds: int
    outcome: Outcome
    smallest: float  # the true difference that would have been claimed in four of five such sweeps


@dataclass(frozen=True)
class Verdict:
    """The answer, and what it rests on."""

    question: Question
    chosen: dict[str, str]  # arm → its settings
    scores: dict[str, float]  # arm → their mean on the test split
    comparisons: tuple[Comparison, ...]
    headline: str
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        return [
            self.headline,
            *self.warnings,
            *(f"  {self.question.arm} {_sentence(one, len(self.comparisons))}" for one in self.comparisons),
        ]


def judge(results: Sequence[Result], baseline: str, gate: dict[str, Any] | None = None) -> Verdict:
    """The verdict of a sweep's results. `gate`: what the teacher scored, where it had to know the task."""
    question = Question.of([one.arm for one in results], baseline)
    chosen = {arm: best for arm in (question.arm, *question.against) if (best := choose(results, arm))}
    found = {
        arm: (both, len({*chosen[arm].seeds} & {*chosen[question.arm].seeds}))
        for arm in question.against
        if question.arm in chosen and arm in chosen and (both := difference(chosen[question.arm], chosen[arm]))
    }
    corrected = holm([both.p for both, _ in found.values()])
    comparisons = tuple(
        _compared(arm, both, p, seeds, len(question.against))
        for (arm, (both, seeds)), p in zip(found.items(), corrected, strict=True)
    )
    settings = {arm: _settings(result) for arm, result in chosen.items()}
    warnings = []
    if gate and not gate["set"] and not gate["passed"]:
        warnings.append(
            f"Warning: the teacher scores {gate['score']:.2f} on the task and the untouched student"
            f" {gate['least']:.2f}: it may have nothing to hand over (--set gate=0.5 makes a score of it a condition)."
        )
    if edge := [arm for arm, result in chosen.items() if result.lr_at_edge]:
        warnings.append(
            f"Warning: the learning rate of {', '.join(edge)} lies on the edge of its grid: a wider --lr might change"
            " this."
        )
    scores = {arm: float(result.scores.mean()) for arm, result in chosen.items()}
    return Verdict(
        question, settings, scores, comparisons, _headline(question, baseline, comparisons, gate), tuple(warnings)
    )


def choose(results: Sequence[Result], arm: str) -> Result | None:
    """The arm's row with the best validation score, the lower loss among equals; never by its test score."""
    rows = [one for one in results if one.arm == arm]
    if len(rows) > 1:
        rows = [one for one in rows if one.validation]
    return max(rows, key=lambda one: one.validation or (0.0, 0.0), default=None)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values that may each be held against the level, whichever of the hypotheses hold (Holm, 1979)."""
    result, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        result[place] = least
    return result


def _compared(arm: str, both: Estimate, p_holm: float, seeds: int, asked: int) -> Comparison:
    outcome: Outcome = "can't tell"
    if seeds < ENOUGH_SEEDS:
        outcome = "described"
    elif p_holm <= LEVEL:
        outcome = "better" if both.mean > 0 else "worse"
    least = smallest_effect(both.error, both.freedom if seeds > 1 else 0, asked)
    return Comparison(arm, both.mean, both.limits(), both.p, p_holm, seeds, outcome, least)


def _settings(result: Result) -> str:
    everything = "attention,ffn,embedding"
    modules = result.modules and result.modules != everything and f"modules {result.modules}"
    parts = [result.layers and f"layers {result.layers}", result.structure, modules or None]
    parts += [f"rank {result.rank}", f"lr {result.lr:g}" if result.lr else None]
    return ", ".join(part for part in [*parts, *(f"{key} {value}" for key, value in result.other.items())] if part)


def _headline(question: Question, baseline: str, comparisons: Sequence[Comparison], gate: dict[str, Any] | None) -> str:
    """The answer in a sentence or two."""
    arm = question.arm
    if gate and gate["set"] and not gate["passed"]:
        return (
            f"No verdict: the teacher scores {gate['score']:.2f} on the task, below the gate of {gate['least']:.2f}."
            " It has nothing to hand over here, so nothing speaks for or against it."
        )
    if not comparisons:
        return f"No verdict: {arm} has no other arm to be compared with."
    if any(one.outcome == "described" for one in comparisons):
        least = min(one.seeds for one in comparisons)
        return (
            f"No claim: {least} random seed{'s'[: least - 1]} can describe, not prove. What follows is what was seen;"
            f" {ENOUGH_SEEDS} seeds (--repeats {ENOUGH_SEEDS}) can carry a claim."
        )
    if arm != "transfer":
        told = [f"{one.against} {_REVERSED[one.outcome]}" for one in comparisons]
        return f"Against {arm}: {', '.join(told)}."
    losers = [one.against for one in comparisons if one.outcome == "worse" and one.against != baseline]
    more = f" {' and '.join(losers)} did better than transfer." if losers else ""
    return _of_transfer(baseline, {one.against: one for one in comparisons}) + more


def _of_transfer(baseline: str, by: dict[str, Comparison]) -> str:
    """Whether it helped, and then whether that was the teacher."""
    first, controls = by.get(baseline), [one for one in by.values() if one.against in CONTROLS]
    if first is None:
        return f"{baseline} was not run, so whether transfer helped isn't known."
    if first.outcome == "worse":
        return f"Transfer hurt: the student learns the task better from plain {baseline}."
    if first.outcome == "can't tell":
        return (
            f"Not shown to help: transfer can't be told from {baseline}"
            f" (a true difference of {first.smallest:.2f} would have been found in 4 of 5 such sweeps)."
        )
    if missed := [one for one in controls if one.outcome != "better"]:
        what = " or ".join(f"{one.against} ({CONTROLS[one.against]})" for one in missed)
        return f"Better than {baseline}, but not shown to be the teacher's doing: transfer is not better than {what}."
    if not controls:
        return (
            f"Better than {baseline}; whether by what the teacher knows can't be said without a control"
            " (--arms with spectrum_control)."
        )
    names = " and than ".join([baseline, *(one.against for one in controls)])
    return f"The teacher helped: transfer is better than {names}."


_REVERSED = {"better": "worse", "worse": "better", "can't tell": "can't be told apart", "described": "described"}


def _sentence(one: Comparison, comparisons: int) -> str:
    low, high = one.ci95
    meaning = f" ({CONTROLS[one.against]})" if one.against in CONTROLS else ""
    counted = f" (corrected for {comparisons} comparisons {_p(one.p_holm)})" if comparisons > 1 else ""
    end: str = one.outcome
    if one.outcome == "can't tell":
        end += f"; a true difference of {one.smallest:.2f} would be found 4 times of 5"
    figures = f"{one.delta:+.3f}, 95 % {low:+.3f} to {high:+.3f}, p {_p(one.p)}{counted}"
    return f"against {one.against}{meaning}: {figures}: {end}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
