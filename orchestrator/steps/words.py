"""A verdict in words: what was found, what it may not be taken for, and what to be careful of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.transfer.arms import ARMS

if TYPE_CHECKING:
    from orchestrator.steps.compare import Result
    from orchestrator.steps.verdict import Comparison, Question

ABOUT = {kind: arm.starts_at for kind, arm in ARMS.items()}
CONTROLS = {kind: ABOUT[kind] for kind, arm in ARMS.items() if arm.is_control}
REVERSED = {"better": "worse", "worse": "better", "can't tell": "can't be told apart", "described": "described"}


def headline(
    question: Question,
    baseline: str,
    comparisons: Sequence[Comparison],
    gate: Mapping[str, Any] | None,
    lost: Sequence[str],
) -> str:
    """The answer in a sentence or two. `lost`: arms that were asked for, and of which no trial ended."""
    arm, by = question.arm, {one.against: one for one in comparisons}
    if gate and gate["set"] and gate["score"] is None:
        return "No verdict: the teacher could not be scored on the task, so whether it passes its gate isn't known."
    if gate and gate["set"] and not gate["passed"]:
        return (
            f"No verdict: the teacher scores {gate['score']:.2f} on the task, below the gate of {gate['least']:.2f}."
            " It has nothing to hand over here, so nothing speaks for or against it."
        )
    if arm in lost:
        return f"No verdict: no trial of {arm} ended."
    if not comparisons:
        return f"No verdict: {arm} has no other arm to be compared with."
    if arm != "transfer":
        told = [f"{one.against} {REVERSED[one.outcome]}" for one in comparisons]
        return f"Against {arm}: {', '.join(told)}."
    if baseline not in by:
        reason = f"no trial of {baseline} ended" if baseline in lost else f"{baseline} was not run"
        return f"Whether transfer helped isn't known: {reason}."
    losers = [one.against for one in comparisons if one.outcome == "worse" and one.against != baseline]
    more = f" {' and '.join(losers)} did better than transfer." if losers else ""
    return _of_transfer(baseline, by, lost) + more


def _of_transfer(baseline: str, by: Mapping[str, Comparison], lost: Sequence[str]) -> str:
    """Whether it helped, and then whether that was the teacher."""
    first, controls = by[baseline], [one for one in by.values() if one.against in CONTROLS]
    if first.outcome == "described":
        return f"No claim: {first.why}. What follows is what was seen."
    if first.outcome == "worse":
        return f"Transfer hurt: the student learns the task better from plain {baseline}."
    if first.outcome == "can't tell":
        return (
            f"Undecided: transfer may or may not be better than {baseline} (only a true difference of"
            f" {first.smallest:.2f} or more would reliably have been found here)."
        )
    if missed := [one for one in controls if one.outcome != "better"]:
        what = " or ".join(f"{one.against} ({one.why or CONTROLS[one.against]})" for one in missed)
        return f"Better than {baseline}, but not shown to be the teacher's doing: transfer is not better than {what}."
    if "spectrum_control" not in by:
        reason = "no trial of spectrum_control ended" if "spectrum_control" in lost else "spectrum_control wasn't run"
        return f"Better than {baseline}; whether by what the teacher knows can't be said: {reason}."
    names = " and than ".join([baseline, *(one.against for one in controls)])
    return f"The teacher helped: transfer is better than {names}."


def warnings(gate: Mapping[str, Any] | None, chosen: Mapping[str, Result], lost: Sequence[str]) -> tuple[str, ...]:
    """What might change the answer."""
    found = [f"Warning: no trial of {arm} ended; nothing is said of it." for arm in lost]
    if gate and not gate["set"] and gate["score"] is not None and not gate["passed"]:
        found.append(
            f"Warning: the teacher scores {gate['score']:.2f} on the task and the untouched student"
            f" {gate['least']:.2f}: it may have nothing to hand over (--set gate=0.5 makes a score of it a condition)."
        )
    if edge := [arm for arm, result in chosen.items() if result.lr_at_edge]:
        found.append(
            f"Warning: the learning rate of {', '.join(edge)} lies on the edge of its grid: a wider --lr might change"
            " this."
        )
    return tuple(found)


def sentence(one: Comparison, comparisons: int) -> str:
    """One comparison with its figures."""
    low, high = one.ci95
    meaning = f" ({CONTROLS[one.against]})" if one.against in CONTROLS else ""
    counted = f" ({_p(one.p_holm)} by Holm's correction for {comparisons} comparisons)" if comparisons > 1 else ""
    end: str = one.outcome
    if one.outcome == "can't tell":
        end += f" (80 % power only for a difference of {one.smallest:.2f})"
    if one.why:
        end += f", not claimed: {one.why}"
    figures = f"{one.delta:+.3f}, 95 % {low:+.3f} to {high:+.3f}, p {_p(one.p)}{counted}"
    return f"against {one.against}{meaning}: {figures}: {end}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
