"""The answer to what a sweep asked, in a sentence or two. Of many ways what is said of several is said once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orchestrator.verdict.asked import CONTROLLED, CONTROLS, NEEDED, OF_TEACHER
from orchestrator.verdict.gate import answer_of
from orchestrator.verdict.words import reach

if TYPE_CHECKING:
    from orchestrator.verdict.asked import Comparison, Question

MANY = 12  # comparisons, above which ways are told of together
REVERSED = {"better": "worse", "worse": "better", "can't tell": "can't be told apart", "described": "described"}
OWN = "its own control"


class Answer(NamedTuple):
    """What is said of one way."""

    kind: Literal["helped", "hurt", "undecided", "other"]
    said: str
    losing_to: tuple[str, ...] = ()  # rivals that did better, the baseline aside


def headline(
    questions: Sequence[Question],
    baseline: str,
    comparisons: Sequence[Comparison],
    gate: Mapping[str, Any] | None,
    lost: Sequence[str],
) -> str:
    """The answer to each question, or to all of them. `lost`: arms that were asked for, of which no trial ended."""
    if gate and gate["set"] and gate["score"] is None:
        return "No verdict: the teacher could not be scored on the task, so whether it passes its gate isn't known."
    if gate and gate["set"] and answer_of(gate) == "doesn't":
        return (
            f"No verdict: the teacher scores {gate['score']:.2f} on the task, below the gate of {gate['least']:.2f}."
            " It has nothing to hand over here, so nothing speaks for or against it."
        )
    by = {one.arm: {pair.against: pair for pair in comparisons if pair.arm == one.arm} for one in questions}
    answers = {arm: _answer(arm, baseline, pairs, lost) for arm, pairs in by.items()}
    if many(questions):
        return _together(answers, baseline, [pairs[baseline] for pairs in by.values() if baseline in pairs])
    told = [f"{one.said}{_losing(arm, one.losing_to)}" for arm, one in answers.items()]
    return " ".join(dict.fromkeys(told))


def many(questions: Sequence[Question]) -> bool:
    """Whether several ways are compared so often that they are told of together."""
    return len(questions) > 1 and sum(len(one.against) for one in questions) > MANY


def _answer(arm: str, baseline: str, by: Mapping[str, Comparison], lost: Sequence[str]) -> Answer:
    if arm in lost:
        return Answer("other", f"No verdict: no trial of {arm} ended.")
    if not by:
        return Answer("other", f"No verdict: {arm} has no other arm to be compared with.")
    if arm not in NEEDED:
        told = [f"{one.against} {REVERSED[one.outcome]}" for one in by.values()]
        return Answer("other", f"Against {arm}: {', '.join(told)}.")
    if baseline not in by:
        reason = f"no trial of {baseline} ended" if baseline in lost else f"{baseline} was not run"
        return Answer("other", f"Whether {arm} helped isn't known: {reason}.")
    losing = tuple(one.against for one in by.values() if one.outcome == "worse" and one.against != baseline)
    return _of_teacher(arm, baseline, by, lost)._replace(losing_to=losing)


def _losing(arm: str, to: Sequence[str]) -> str:
    return f" {' and '.join(to)} did better than {arm}." if to else ""


def _of_teacher(arm: str, baseline: str, by: Mapping[str, Comparison], lost: Sequence[str]) -> Answer:
    """Whether it helped, and then whether that was the teacher."""
    first, controls, needed = by[baseline], [one for one in by.values() if one.against in CONTROLS], NEEDED[arm]
    if first.outcome == "described":
        return Answer("other", f"No claim: {first.why}. What follows is what was seen.")
    if first.outcome == "worse":
        return Answer("hurt", f"{arm.capitalize()} hurt: the student learns the task better from plain {baseline}.")
    if first.outcome == "can't tell":
        said = (
            f"Undecided: {arm} may or may not be better than {baseline} ({reach(first.smallest)} would reliably have"
            " been found here)."
        )
        return Answer("undecided", said)
    if missed := [one for one in controls if one.outcome != "better"]:
        how = {"worse": "is worse than", "described": "can't be claimed to be better than"}
        told = [(how.get(one.outcome, "can't be told from"), one.against, one.why or CONTROLS[one.against])
                for one in missed]  # fmt: skip
        what = " and ".join(f"{is_} {other} ({about})" for is_, other, about in told)
        whose = "the teacher's doing" if arm in OF_TEACHER else "its own doing"
        return Answer("other", f"Better than {baseline}, but not shown to be {whose}: {arm} {what}.")
    if needed not in by:
        reason = f"no trial of {needed} ended" if needed in lost else f"{needed} wasn't run"
        of = "" if arm == "transfer" else f" of {arm}"
        by_what = "by what the teacher knows" if arm in OF_TEACHER else "by its own doing"
        return Answer("other", f"Better than {baseline}; whether {by_what} can't be said{of}: {reason}.")
    names = " and than ".join([baseline, *(one.against for one in controls)])
    who = "The teacher" if arm in OF_TEACHER else arm.capitalize()
    return Answer("helped", f"{who} helped: {arm} is better than {names}.")


def _together(answers: Mapping[str, Answer], baseline: str, against: Sequence[Comparison]) -> str:
    """How many helped, then each that is more than undecided or worse, and the others by name.

    `against`: the comparisons with the baseline.
    """
    by = {kind: [arm for arm, one in answers.items() if one.kind == kind] for kind in ("helped", "hurt", "undecided")}
    told = []
    if any(by.values()):
        helped = (
            f"{len(by['helped'])} of {len(answers)} ways"
            if by["helped"]
            else f"None of {len(answers)} ways is shown to have"
        )
        told.append(f"{helped} helped.")
    told += dict.fromkeys(one.said for kind in ("helped", "other") for one in answers.values() if one.kind == kind)
    if by["undecided"]:
        smallest = [one.smallest for one in against if one.arm in by["undecided"]]
        told.append(
            f"Undecided: {_and(by['undecided'])} may or may not be better than {baseline} ({_reaches(smallest)} would"
            " reliably have been found here)."
        )
    if by["hurt"]:
        told.append(f"Hurt: {_and(by['hurt'])}: the student learns the task better from plain {baseline}.")
    for rival in dict.fromkeys(rival for one in answers.values() for rival in one.losing_to):
        behind = [arm for arm, one in answers.items() if rival in one.losing_to]
        named = [arm for arm in behind if arm not in by["hurt"]]  # the others are known to be worse already
        if len(behind) == len(answers) or named:
            told.append(f"{rival} did better than {'all of them' if len(behind) == len(answers) else _and(named)}.")
    return " ".join(told)


def _and(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _reaches(smallest: Sequence[float | None]) -> str:
    """The smallest true differences that are found four times of five, of several comparisons."""
    found = [one for one in smallest if one is not None and one <= 1]
    if len(found) < len(smallest) or (low := min(found)) == (high := max(found)):
        return reach(found[0] if len(found) == len(smallest) else None)
    return f"only a true difference of {low:.2f} to {high:.2f} or more"


def grid(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]], list[str]]:
    """Differences with half their intervals: a line a way and a column a rival, and why some are not claimed.

    A star stands at what is claimed. The column of the ways' own controls has of several the least favourable one.
    """
    reasons = list(dict.fromkeys(one.why for one in comparisons if one.why))
    marks = {"": "", **{why: f" [{place}]" for place, why in enumerate(reasons, 1)}}
    ways: dict[str, dict[str, Comparison]] = {}
    for one in comparisons:
        column = OWN if CONTROLLED.get(one.against) == one.arm else one.against
        cells = ways.setdefault(one.arm, {})
        cells[column] = min(cells.get(column, one), one, key=lambda pair: (pair.outcome == "better", pair.ci95[0]))
    columns = list(dict.fromkeys(column for cells in ways.values() for column in cells))
    order = sorted(ways, key=lambda way: -ways[way][columns[0]].delta if columns[0] in ways[way] else 1.0)
    lines = [[way, *(_cell(ways[way].get(column), marks) for column in columns)] for way in order]
    return ["way", *columns], lines, [f"[{place}] not claimed: {why}" for place, why in enumerate(reasons, 1)]


def about_grid(count: int) -> str:
    """How to read it."""
    return (
        f"Differences in score ± half their 95 % intervals, each by itself. * better or worse, after Holm's correction"
        f" for {count} comparisons; whatever has none can't be told apart."
    )


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal, which Markdown has as a table too."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *rest = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)) + " |" for row in rows
    ]
    return [first, "|" + "|".join("-" * (width + 2) for width in wide) + "|", *rest]


def _cell(one: Comparison | None, marks: Mapping[str, str]) -> str:
    if one is None:
        return "-"
    star = "*" if one.outcome in ("better", "worse") else ""
    return f"{one.delta:+.2f} ± {one.ci95[1] - one.delta:.2f}{star}{marks[one.why]}"
