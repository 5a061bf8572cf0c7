"""A verdict in words: what was found, what it may not be taken for, and what to be careful of."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.verdict.asked import ABOUT, BOUNDS, CONTROLS, NEEDED, OF_TEACHER
from orchestrator.verdict.estimates import PLACE
from orchestrator.verdict.gate import answer_of

if TYPE_CHECKING:
    from orchestrator.verdict.asked import Comparison, Question
    from orchestrator.verdict.estimates import Result

ROOM = {
    "cut": "are cut at the end (max_tokens)",
    "left_out": "are left out, since their question alone is too long",
    "not_asked": "are counted as wrong, since they don't fit into the student's context",
}
MANY = 12  # comparisons, above which each is told in short
PASSED = {"knows it": "passed", "doesn't": "not passed", None: "not passed", "can't tell": "can't tell"}
REVERSED = {"better": "worse", "worse": "better", "can't tell": "can't be told apart", "described": "described"}


def headline(
    questions: Sequence[Question],
    baseline: str,
    comparisons: Sequence[Comparison],
    gate: Mapping[str, Any] | None,
    lost: Sequence[str],
) -> str:
    """The answer to each question in a sentence or two. `lost`: arms that were asked for, of which no trial ended."""
    if gate and gate["set"] and gate["score"] is None:
        return "No verdict: the teacher could not be scored on the task, so whether it passes its gate isn't known."
    if gate and gate["set"] and answer_of(gate) == "doesn't":
        return (
            f"No verdict: the teacher scores {gate['score']:.2f} on the task, below the gate of {gate['least']:.2f}."
            " It has nothing to hand over here, so nothing speaks for or against it."
        )
    answers = [
        _answer(one.arm, baseline, [pair for pair in comparisons if pair.arm == one.arm], lost) for one in questions
    ]
    return " ".join(dict.fromkeys(answers))  # what is said of several is said once


def _answer(arm: str, baseline: str, comparisons: Sequence[Comparison], lost: Sequence[str]) -> str:
    by = {one.against: one for one in comparisons}
    if arm in lost:
        return f"No verdict: no trial of {arm} ended."
    if not comparisons:
        return f"No verdict: {arm} has no other arm to be compared with."
    if arm not in NEEDED:
        told = [f"{one.against} {REVERSED[one.outcome]}" for one in comparisons]
        return f"Against {arm}: {', '.join(told)}."
    if baseline not in by:
        reason = f"no trial of {baseline} ended" if baseline in lost else f"{baseline} was not run"
        return f"Whether {arm} helped isn't known: {reason}."
    losers = [one.against for one in comparisons if one.outcome == "worse" and one.against != baseline]
    more = f" {' and '.join(losers)} did better than {arm}." if losers else ""
    return _of_teacher(arm, baseline, by, lost) + more


def _of_teacher(arm: str, baseline: str, by: Mapping[str, Comparison], lost: Sequence[str]) -> str:
    """Whether it helped, and then whether that was the teacher."""
    first, controls, needed = by[baseline], [one for one in by.values() if one.against in CONTROLS], NEEDED[arm]
    if first.outcome == "described":
        return f"No claim: {first.why}. What follows is what was seen."
    if first.outcome == "worse":
        return f"{arm.capitalize()} hurt: the student learns the task better from plain {baseline}."
    if first.outcome == "can't tell":
        return (
            f"Undecided: {arm} may or may not be better than {baseline} ({reach(first.smallest)} would reliably have"
            " been found here)."
        )
    if missed := [one for one in controls if one.outcome != "better"]:
        how = {"worse": "is worse than", "described": "can't be claimed to be better than"}
        told = [(how.get(one.outcome, "can't be told from"), one.against, one.why or CONTROLS[one.against])
                for one in missed]  # fmt: skip
        what = " and ".join(f"{is_} {other} ({about})" for is_, other, about in told)
        whose = "the teacher's doing" if arm in OF_TEACHER else "its own doing"
        return f"Better than {baseline}, but not shown to be {whose}: {arm} {what}."
    if needed not in by:
        reason = f"no trial of {needed} ended" if needed in lost else f"{needed} wasn't run"
        of = "" if arm == "transfer" else f" of {arm}"
        by_what = "by what the teacher knows" if arm in OF_TEACHER else "by its own doing"
        return f"Better than {baseline}; whether {by_what} can't be said{of}: {reason}."
    names = " and than ".join([baseline, *(one.against for one in controls)])
    who = "The teacher" if arm in OF_TEACHER else arm.capitalize()
    return f"{who} helped: {arm} is better than {names}."


def warnings(gate: Mapping[str, Any] | None, chosen: Mapping[str, Result], lost: Sequence[str]) -> tuple[str, ...]:
    """What might change the answer."""
    found = [f"Warning: no trial of {arm} ended; nothing is said of it." for arm in lost]
    if gate and (unsure := doubt(gate, [*chosen, *lost])):
        found.append(f"Warning: {unsure}.")
    if edge := [arm for arm, result in chosen.items() if result.lr_at_edge]:
        found.append(
            f"Warning: the learning rate of {', '.join(edge)} lies on the edge of its grid: a wider --lr might change"
            " this."
        )
    return tuple(found)


def doubt(gate: Mapping[str, Any], arms: Collection[str]) -> str:
    """What to be careful of where it wasn't seen that the teacher knows the task; nothing where no arm asks it."""
    answer = answer_of(gate)
    if answer in ("knows it", None) or not (gate["set"] or set(arms) & {*OF_TEACHER}):
        return ""
    if gate["set"]:
        where = f"the teacher scores {gate['score']:.2f} on the task{_within(gate, '')}"
        if answer == "doesn't":
            return f"{where}, below the gate of {gate['least']:.2f}, and there will be no verdict"
        return f"{where}, and whether it passes the gate of {gate['least']:.2f} can't be told"
    scores = (
        f"the teacher scores {gate['score']:.2f} on the task and the untouched student {gate['least']:.2f}"
        f"{_within(gate, '+')}: it may have nothing to hand over"
    )
    if answer == "doesn't":
        return (
            f"{scores}, and nothing is claimed in favour of what is taken from it (--set gate=0 lifts that, a larger"
            " one makes a score the condition)"
        )
    return f"{scores}, which can't be told (--set gate=0.5 makes a score the condition)"


def _within(gate: Mapping[str, Any], sign: str) -> str:
    """The gate's interval: of a score, or with a sign of a difference; a record of an older version has none."""
    if not gate.get("ci95"):
        return ""
    low, high = gate["ci95"]
    return f" ({'difference, ' if sign else ''}95 %: {low:{sign}.3f} to {high:{sign}.3f})"


def how_chosen(twins: Collection[str]) -> str:
    """By what an arm's row was taken; `twins`: controls that answered for transfer's settings, too."""
    more = ", a control at its arm's where that is the harder test" if twins else ""
    return f"settings of best validation score{more}"


def about_rows(rows: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    """What a leaderboard's columns and arms are."""
    arms = [row["arm"] for row in rows]
    kinds = [arm for arm in ABOUT if arm in arms]
    lines = [
        "mean: of the score on the test split, over random seeds; 95 %: over seeds and examples, uncorrected: rely on"
        " the verdict.",
        f"vs {baseline}: against the {baseline} row of the same rank.",
    ]
    if any("before" in row for row in rows):
        lines.append("before: the score before any training step, with what of the teacher's update was carried over.")
    if kinds:
        starts = ", ".join(f"{one} ({ABOUT[one]})" for one in kinds)
        lines.append(f"Every arm trains a LoRA on the student and starts at: {starts}.")
    if set(arms) & {*BOUNDS}:
        tuned = "; teacher_tuned: the teacher, fine-tuned with a LoRA of its own" if "teacher_tuned" in arms else ""
        lines.append(f"student, teacher: pre-trained, as they are, not fine-tuned on the task{tuned}.")
    return lines


def clipped_line(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where most steps of an arm were clipped, how often each arm's were: then lengths of gradients hardly counted."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row["clipped"] is not None:
            shares.setdefault(row["arm"], []).append(100 * row["clipped"])
    if max((share for some in shares.values() for share in some), default=0) <= 50:
        return []
    spans = {arm: dict.fromkeys((f"{min(some):.0f}", f"{max(some):.0f}")) for arm, some in shares.items()}
    told = ", ".join(f"{arm} {' to '.join(span)} %" for arm, span in spans.items())
    return [f"Steps whose gradient was clipped (finetune.max_grad_norm): {told}."]


def gate_line(gate: Mapping[str, Any]) -> str:
    """Whether the teacher knows the task, which of its rows tells, and what was asked for."""
    asked = f"at least {gate['least']:g} is" if gate["set"] else f"more than the student's {gate['least']:.3f} is"
    score, answer = "no score", answer_of(gate)
    if gate["score"] is not None:
        score = f"{gate.get('of', 'the teacher')} scores {gate['score']:.3f}{_within(gate, '' if gate['set'] else '+')}"
    return f"{score}; {asked} needed for a claim: {PASSED[answer]}"


def reach(smallest: float | None) -> str:
    """The smallest true difference that is found four times of five; scores have no difference above 1."""
    if smallest is None or smallest > 1:
        return "not even the largest true difference"
    return f"only a true difference of {smallest:.2f} or more"


def sentence(one: Comparison, comparisons: int) -> str:
    """One comparison with its figures."""
    low, high = one.ci95
    meaning = f" ({CONTROLS[one.against]})" if one.against in CONTROLS else ""
    counted = f"; p {_p(one.p_holm)} after Holm's correction for {comparisons} comparisons" if comparisons > 1 else ""
    end: str = one.outcome
    if one.outcome == "can't tell":
        end += f" (80 % power: {reach(one.smallest)})"
    if one.why:
        end += f", not claimed: {one.why}"
    figures = f"{one.delta:+.3f}, 95 % {low:+.3f} to {high:+.3f} by itself, p {_p(one.p)}{counted}"
    return f"against {one.against}{meaning}: {figures}: {end}"


def in_short(comparisons: Sequence[Comparison], count: int) -> list[str]:
    """A line each, where there are many: what all have in common is said once, above them."""
    reasons = list(dict.fromkeys(one.why for one in comparisons if one.why))
    marks = {why: f" [{place}]" for place, why in enumerate(reasons, 1)}
    told = [
        f"Differences with their 95 % intervals, each by itself; p after Holm's correction for {count} comparisons.",
        *(f"{marks[why].strip()} not claimed: {why}" for why in reasons),
    ]
    wide = max((len(f"{one.arm} against {one.against}") for one in comparisons), default=0)
    for one in comparisons:
        low, high = one.ci95
        pair = f"{one.arm} against {one.against}"
        figures = f"{one.delta:+.3f} [{low:+.3f}, {high:+.3f}], p {_p(one.p_holm)}"
        told.append(f"{pair:<{wide}}  {figures}: {one.outcome}{marks.get(one.why, '')}")
    return [f"  {line}" for line in told]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def room_lines(record: Mapping[str, Any]) -> list[str]:
    """Rows that were cut, left out or not asked, split by split."""
    lines = []
    for split, fit in record.get("fit", {}).items():
        told = [f"{fit[key]} {words}" for key, words in ROOM.items() if fit.get(key)]
        if told:
            lines.append(f"Of {fit['rows'] + fit.get('left_out', 0)} {split} rows {', '.join(told)}.")
    return lines


def cut_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whose answers had not ended when they had as many tokens as they may have."""
    told = [f"{name} {row['cut']:.1%}" for name, row in zip(_names(rows), rows, strict=True) if row["cut"]]
    return f"Answers without an end within the tokens that they may have: {', '.join(told)}." if told else ""


def also_line(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is told of answers beside their score, row by row; not by kind, of which a file may name many."""
    named = zip(_names(rows), rows, strict=True)
    told = [f"{name}: {also_words(row['also'])}" for name, row in named if row.get("also")]
    return [f"Beside the score: {'; '.join(told)}."] if told else []


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each row's in a few words: arm and rank, and of rows that are alike in these what tells them apart."""
    short = [f"{row['arm']} r{row['rank']}" if row["rank"] else str(row["arm"]) for row in rows]
    facts = [
        [*(row.get(name) for name in PLACE), *(f"{key} {value}" for key, value in row.get("other", {}).items())]
        for row in rows
    ]
    names = []
    for own, told in zip(short, facts, strict=True):
        alike = [other for name, other in zip(short, facts, strict=True) if name == own]
        apart = [words for words in told if words and not all(words in other for other in alike)]
        names.append(f"{own} ({', '.join(apart)})" if apart else own)
    return names


def also_words(also: Mapping[str, float]) -> str:
    """Figures with their names."""
    return ", ".join(f"{name} {value:.3f}" for name, value in plain(also).items())


def plain(also: Mapping[str, float]) -> dict[str, float]:
    """Without the kinds of a figure: `portability`, and not `portability.Reasoning`."""
    return {name: value for name, value in also.items() if "." not in name}


def label(strategy: dict[str, Any]) -> str:
    """A dumped strategy's name for people, with those of its fields that are set: `random(seed=1)`, `0,2,5`.

    Given indices are too many to show: four digits of their checksum keep two choices of one sweep apart.
    """
    if strategy["kind"] == "explicit":
        return ",".join(map(str, strategy["layers"]))
    if strategy["kind"] == "given":
        return f"given({zlib.crc32(json.dumps(strategy, sort_keys=True).encode()) % 0x10000:04x})"
    fields = ",".join(f"{key}={value}" for key, value in strategy.items() if key != "kind" and value)
    return f"{strategy['kind']}({fields})" if fields else str(strategy["kind"])
