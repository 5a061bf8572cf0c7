"""What a training costs elsewhere: each chosen row on the further tasks, against the untouched student there.

    for one in costs(results, chosen, margin=0.02, enough=6): print(sentence(one))

A loss is claimed where the difference is significant, and "forgot nothing" where it is significantly within the margin
both ways (two one-sided tests: Schuirmann, 1987). Between the two nothing is claimed: that no loss was found doesn't
prove that there is none. Each of the two families is corrected by Holm's method for all rows and tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from orchestrator.verdict.asked import BOUNDS
from orchestrator.verdict.estimates import Beside, Estimate, Matrix, Result, difference, holm
from orchestrator.verdict.power import LEVEL
from orchestrator.verdict.words import also_words

MARGIN = 0.02  # of a score: a difference elsewhere that doesn't matter, where nobody says another
Outcome = Literal["forgot", "gained", "forgot nothing", "can't tell", "described"]


@dataclass(frozen=True)
class Flips:
    """Of answers that are right or wrong: shares that changed, means over seeds, and which went wrong how often."""

    lost: float  # right before, wrong after
    won: float
    wrong: dict[str, int]  # id → in how many seeds, the most frequent first


@dataclass(frozen=True)
class Cost:
    """A row on one further task."""

    arm: str
    task: str
    before: float  # the untouched student's score
    delta: float
    ci95: tuple[float, float]
    p: float  # that there is no difference, corrected
    p_beyond: float  # that it is beyond the margin, corrected
    margin: float
    seeds: int
    outcome: Outcome
    flips: Flips | None = None  # where answers are right or wrong
    also: dict[str, float] = field(default_factory=dict)  # what else is told of answers there


def costs(results: Sequence[Result], chosen: Mapping[str, Result], *, margin: float, enough: int) -> list[Cost]:
    """Each chosen arm on each further task; with fewer than `enough` seeds described, and nothing claimed."""
    untouched = next((one for one in results if one.arm == "student"), None)
    if untouched is None:
        return []
    found = []
    for arm, result in chosen.items():
        for task, there in result.beside.items():
            own, before = result.on(task), untouched.on(task)
            if arm in BOUNDS or own is None or before is None:
                continue
            same = replace(own, scores=np.broadcast_to(before.scores[0], own.scores.shape))  # whatever the seed
            both = difference(own, same)
            assert both is not None
            found.append(Cost(arm, task, float(before.scores[0].mean()), both.mean, both.limits(), both.p,
                              _beyond(both, margin, _least(margin, same, own)), margin, len(own.seeds), "can't tell",
                              _flips(there, before.scores[0]), there.also))  # fmt: skip
    different, within = (holm([getattr(one, name) for one in found]) for name in ("p", "p_beyond"))
    return [
        replace(one, p=p, p_beyond=beyond, outcome=_outcome(one, p, beyond, enough))
        for one, p, beyond in zip(found, different, within, strict=True)
    ]


def _least(margin: float, *rows: Result) -> float:
    """The standard error of a mean difference of the margin, where right answers go wrong and none becomes right.

    Few changes show a small difference and a small spread together: by the spread that was seen, up to a quarter of
    sweeps called a loss of the margin none (experiments/calibration). So the tests against it take this at least, a
    binomial share's, with all seeds losing the same examples. Zero for scores that are no shares.
    """
    if any(one.scores.min() < 0 or one.scores.max() > 1 for one in rows):
        return 0.0
    return math.sqrt(max(0.0, margin * (1 - margin)) / rows[0].scores.shape[1])


def _beyond(both: Estimate, margin: float, least: float) -> float:
    """The larger p-value of two one-sided tests: that the difference is below the margin, and that it is above.

    `least`: how small its standard error may be, from example to example.
    """
    if both.error < least:
        both = replace(both, error=least, by_seeds=both.by_seeds * (both.error / least) ** 2)
    sides = [(replace(both, mean=both.mean + side * margin), side) for side in (1, -1)]
    return max(one.p / 2 if one.mean * side > 0 else 1 - one.p / 2 for one, side in sides)


def _outcome(one: Cost, p: float, beyond: float, enough: int) -> Outcome:
    if one.seeds < enough:
        return "described"
    if beyond <= LEVEL:
        return "forgot nothing"
    if p <= LEVEL:
        return "forgot" if one.delta < 0 else "gained"
    return "can't tell"


def _flips(there: Beside, before: Matrix) -> Flips | None:
    if not {*np.unique(there.scores), *np.unique(before)} <= {0.0, 1.0}:
        return None
    lost, won = (before == 1) & (there.scores == 0), (before == 0) & (there.scores == 1)
    often = sorted(zip(there.ids, lost.sum(0).tolist(), strict=False), key=lambda one: -one[1])
    return Flips(float(lost.mean()), float(won.mean()), {name: int(count) for name, count in often if count})


def sentence(one: Cost) -> str:
    """For people: "transfer forgot on mmlu: -0.031 (95 % -0.045 to -0.017, ...)"."""
    said = {"forgot nothing": f"forgot nothing that matters (within {one.margin:g})", "described": "moved",
            "can't tell": "can't be said to have kept or lost anything"}.get(one.outcome, one.outcome)  # fmt: skip
    low, high = one.ci95
    flips = ""
    if one.before < 0:  # the log-likelihood of a text's tokens
        flips = f"; perplexity {math.exp(-one.before):.4g} to {math.exp(-one.before - one.delta):.4g}"
    if one.flips:
        flips = f"; {one.flips.lost:.1%} of the answers went wrong, {one.flips.won:.1%} right"
    if one.also:
        flips += f"; beside it {also_words(one.also)}"
    why = f", {one.seeds} random seeds describe, not prove" if one.outcome == "described" else ""
    return f"{one.arm} {said} on {one.task}: {one.delta:+.3f} (95 % {low:+.3f} to {high:+.3f}{why}){flips}"
