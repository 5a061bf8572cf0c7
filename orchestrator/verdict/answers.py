"""The answer to what a sweep asked, in a sentence or two. Of many ways what is said of several is said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from orchestrator.verdict.asked import CONTROLLED, CONTROLS, NEEDED, OF_TEACHER, counted
from orchestrator.verdict.gate import answer_of
from orchestrator.verdict.words import reach

if TYPE_CHECKING:
    from orchestrator.verdict.asked import Comparison, Outcome, Question

MANY = 12  # comparisons, above which ways are told of together
REVERSED = {"better": "worse", "worse": "better", "can't tell": "can't be told apart", "described": "described"}
OWN = "its own control"
AGAINST: dict[Outcome, int] = {"worse": 0, "described": 1, "can't tell": 1, "better": 2}  # what speaks most against it
Kind = Literal["helped", "missed", "undecided", "hurt", "other"]  # in the order in which they are told


class Answer(NamedTuple):
    """What is said of one way, and in what words of several: {ways} are their names, {reach} what could be found."""

    kind: Kind
    said: str
    of_several: str = ""  # nothing: each is told of by itself
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
        return _together(answers, {arm: pairs[baseline].smallest for arm, pairs in by.items() if baseline in pairs})
    told = [f"{one.said}{_losing(arm, one.losing_to)}" for arm, one in answers.items()]
    return " ".join(dict.fromkeys(told))


def many(questions: Sequence[Question]) -> bool:
    """Whether several ways are compared so often that they are told of together."""
    return len(questions) > 1 and counted(questions) > MANY


def _answer(arm: str, baseline: str, by: Mapping[str, Comparison], lost: Sequence[str]) -> Answer:
    if arm in lost:
        return Answer("other", f"No verdict: no trial of {arm} ended.", "No verdict of {ways}: no trial ended.")
    if not by:
        return Answer("other", f"No verdict: {arm} has no other arm to be compared with.")
    if arm not in NEEDED:
        told = [f"{one.against} {REVERSED[one.outcome]}" for one in by.values()]
        return Answer("other", f"Against {arm}: {', '.join(told)}.")
    if baseline not in by:
        reason = f"no trial of {baseline} ended" if baseline in lost else f"{baseline} was not run"
        unknown = f"Whether {{ways}} helped isn't known: {reason}."
        return Answer("other", unknown.replace("{ways}", arm), unknown)
    losing = tuple(one.against for one in by.values() if one.outcome == "worse" and one.against != baseline)
    return _of_teacher(arm, baseline, by, lost)._replace(losing_to=losing)


def _losing(arm: str, to: Sequence[str]) -> str:
    return f" {' and '.join(to)} did better than {arm}." if to else ""


def _of_teacher(arm: str, baseline: str, by: Mapping[str, Comparison], lost: Sequence[str]) -> Answer:
    """Whether it helped, and then whether that was the teacher."""
    first, controls, needed = by[baseline], [one for one in by.values() if one.against in CONTROLS], NEEDED[arm]
    if first.outcome == "described":
        several = f"No claim of {{ways}}: {first.why}."
        return Answer("other", f"No claim: {first.why}. What follows is what was seen.", several)
    if first.outcome == "worse":
        why = f"the student learns the task better from plain {baseline}"
        return Answer("hurt", f"{arm.capitalize()} hurt: {why}.", f"Hurt: {{ways}}: {why}.")
    if first.outcome == "can't tell":
        of = f"may or may not be better than {baseline}"
        words = f"Undecided: {{ways}} {of} ({{reach}} would reliably have been found here)."
        return Answer("undecided", words.replace("{ways}", arm).replace("{reach}", reach(first.smallest)), words)
    if missed := [one for one in controls if one.outcome != "better"]:
        how = {"worse": "is worse than", "described": "can't be claimed to be better than"}
        told = [(how.get(one.outcome, "can't be told from"), one.against, one.why or CONTROLS[one.against])
                for one in missed]  # fmt: skip
        what = " and ".join(f"{is_} {other} ({about})" for is_, other, about in told)
        whose = "the teacher's doing" if arm in OF_TEACHER else "its own doing"
        return Answer("missed", f"Better than {baseline}, but not shown to be {whose}: {arm} {what}.")
    if needed not in by:
        reason = f"no trial of {needed} ended" if needed in lost else f"{needed} wasn't run"
        of = "" if arm == "transfer" else f" of {arm}"
        by_what = "by what the teacher knows" if arm in OF_TEACHER else "by its own doing"
        said = f"Better than {baseline}; whether {by_what} can't be said{of}: {reason}."
        several = f"Better than {baseline}; whether {by_what} can't be said of {{ways}}, without each one's control."
        return Answer("missed", said, several)
    names = " and than ".join([baseline, *(one.against for one in controls)])
    who = "The teacher" if arm in OF_TEACHER else arm.capitalize()
    return Answer("helped", f"{who} helped: {arm} is better than {names}.")


def _together(answers: Mapping[str, Answer], smallest: Mapping[str, float | None]) -> str:
    """How many helped, which, and what is to be said of the others; then who did better than they.

    `smallest`: of each way the true difference from the baseline that would have been found.
    """
    every = len(answers)
    helped = sum(one.kind == "helped" for one in answers.values())
    told = [f"{helped} of {every} ways helped." if helped else f"None of {every} ways is shown to have helped."]
    for kind in get_args(Kind):
        groups = dict.fromkeys(one.of_several or one.said for one in answers.values() if one.kind == kind)
        for words in groups:
            ways = [arm for arm, one in answers.items() if words in (one.of_several, one.said)]
            reaches = _reaches({arm: smallest.get(arm) for arm in ways}) if "{reach}" in words else ""
            told.append(words.replace("{ways}", _and(ways)).replace("{reach}", reaches))
    own = [
        arm
        for arm, one in answers.items()
        if one.kind != "missed" and any(_is_own(arm, other) for other in one.losing_to)
    ]
    if own:
        told.append(f"{_and(own)} did worse than {'their own controls' if len(own) > 1 else OWN}.")
    behind = Counter(rival for arm, one in answers.items() for rival in one.losing_to if not _is_own(arm, rival))
    if behind:
        counts = [
            f"{rival} than {f'all {every}' if count == every else count}" for rival, count in behind.most_common()
        ]
        told.append(f"Did better than these ways: {', '.join(counts)}.")
    return " ".join(told)


def _is_own(arm: str, other: str) -> bool:
    return CONTROLLED.get(other) == arm


def _and(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _reaches(smallest: Mapping[str, float | None]) -> str:
    """The smallest true differences that are found four times of five, and of which ways not even the largest is."""
    found = {arm: one for arm, one in smallest.items() if one is not None and one <= 1}
    if not found:
        return reach(None)
    none = [arm for arm in smallest if arm not in found]
    more = f", and of {_and(none)} {reach(None)}," if none else ""
    return reach(min(found.values()), max(found.values())) + more


def grid(
    questions: Sequence[Question], comparisons: Sequence[Comparison]
) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Differences with half their intervals, a line a way and a column a rival: how to read it, head, lines, footnotes.

    A star stands at what is claimed; footnotes say why some are not. The column of the ways' own controls has of
    several the one that speaks most against the way, by name.
    """
    reasons = list(dict.fromkeys(one.why for one in comparisons if one.why))
    marks = {"": "", **{why: f" [{place}]" for place, why in enumerate(reasons, 1)}}
    several = {one.arm for one in questions if sum(_is_own(one.arm, other) for other in one.against) > 1}
    ways: dict[str, dict[str, Comparison]] = {}
    for one in comparisons:
        column = OWN if _is_own(one.arm, one.against) else one.against
        cells = ways.setdefault(one.arm, {})
        cells[column] = min(cells.get(column, one), one, key=lambda pair: (AGAINST[pair.outcome], pair.ci95[0]))
    columns = list(dict.fromkeys(column for cells in ways.values() for column in cells))
    order = sorted(ways, key=lambda way: -ways[way][columns[0]].delta if columns[0] in ways[way] else 1.0)
    lines = []
    for way in order:
        shown = {column: _cell(one) + marks[one.why] for column, one in ways[way].items()}
        if way in several and OWN in shown:
            shown[OWN] += f" ({ways[way][OWN].against})"
        lines.append([way, *(shown.get(column, "-") for column in columns)])
    about = (
        "Differences in score ± half their 95 % intervals, each by itself. * better or worse, after Holm's correction"
        f" for {counted(questions)} comparisons; {'[n] not claimed, for the reason below; ' * bool(reasons)}whatever"
        f" has {'neither' if reasons else 'none'} can't be told apart."
    )
    return about, ["way", *columns], lines, [f"[{place}] not claimed: {why}" for place, why in enumerate(reasons, 1)]


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal, which Markdown has as a table too."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *rest = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)) + " |" for row in rows
    ]
    return [first, "|" + "|".join("-" * (width + 2) for width in wide) + "|", *rest]


def _cell(one: Comparison) -> str:
    delta, half = round(one.delta, 3) + 0.0, one.ci95[1] - one.delta  # without the sign of a zero
    return f"{delta:+.3f} ± {half:.3f}{'*' * (one.outcome in ('better', 'worse'))}"
