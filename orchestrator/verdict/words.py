"""A verdict in words: what was found, what it may not be taken for, and what to be careful of."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.verdict.asked import ABOUT, BOUNDS, CONTROLS, OF_TEACHER
from orchestrator.verdict.estimates import PLACE
from orchestrator.verdict.gate import answer_of

if TYPE_CHECKING:
    from orchestrator.verdict.asked import Comparison
    from orchestrator.verdict.estimates import Estimate, Result

ROOM = {
    "cut": "are cut at the end (max_tokens)",
    "left_out": "are left out, since their question alone is too long",
    "not_asked": "are counted as wrong, since they don't fit into the student's context",
}
MANY = 12  # arms, of which not each is told of
FEW = 0.05  # of the answers
PASSED = {"knows it": "passed", "doesn't": "not passed", None: "not passed", "can't tell": "can't tell"}


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


def low_bar(arm: str, control: str, baseline: str, below: Estimate) -> str:
    """That an arm's control is itself worse than the baseline, so that being better than it says less."""
    low, high = below.limits()
    return (
        f"Warning: {control}, the control of {arm}, is itself worse than {baseline} ({below.mean:+.3f}, 95 %"
        f" {low:+.3f} to {high:+.3f}): that {arm} beats it may be the control's harm, and nothing that {arm} does"
        " right."
    )


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
    if many := len(kinds) > MANY and {*kinds} & {*CONTROLS}:
        kinds = [kind for kind in kinds if kind not in CONTROLS]
    if kinds:
        starts = ", ".join(f"{one} ({ABOUT[one]})" for one in kinds)
        more = "; `pkt strategies` tells what their controls do" if many else ""
        lines.append(f"Every arm trains a LoRA on the student and starts at: {starts}{more}.")
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
    often = [arm for arm, some in shares.items() if min(some) > 50]
    others = [arm for arm in shares if arm not in often]
    named, told = list(shares), []
    if len(shares) > MANY:
        named, alike = sorted((often, others), key=len)
        told = [f"{'more than' if alike is often else 'at most'} half in {len(alike)} arms"]
    for arm in named:
        span = dict.fromkeys((f"{min(shares[arm]):.0f}", f"{max(shares[arm]):.0f}"))
        told.append(f"{arm} {' to '.join(span)} %")
    return [f"Steps whose gradient was clipped (finetune.max_grad_norm): {', '.join(told)}."]


def gate_line(gate: Mapping[str, Any]) -> str:
    """Whether the teacher knows the task, which of its rows tells, and what was asked for."""
    asked = f"at least {gate['least']:g} is" if gate["set"] else f"more than the student's {gate['least']:.3f} is"
    score, answer = "no score", answer_of(gate)
    if gate["score"] is not None:
        score = f"{gate.get('of', 'the teacher')} scores {gate['score']:.3f}{_within(gate, '' if gate['set'] else '+')}"
    return f"{score}; {asked} needed for a claim: {PASSED[answer]}"


def reach(smallest: float | None, most: float | None = None) -> str:
    """The smallest true difference that is found four times of five, `most` at the most of several comparisons.

    Scores have no difference above 1.
    """
    if smallest is None or smallest > 1:
        return "not even the largest true difference"
    sizes = dict.fromkeys(f"{one:.2f}" if one >= 0.01 else f"{one:.1g}" for one in (smallest, most or smallest))
    return f"only a true difference of {' to '.join(sizes)} or more"


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
    shares = [(name, row["cut"]) for name, row in zip(_names(rows), rows, strict=True) if row["cut"]]
    few = [share for _, share in shares if share <= FEW] if len(shares) > MANY else []
    told = [f"{name} {share:.1%}" for name, share in shares if not few or share > FEW]
    if few:
        told.append(f"{'in the others' if told else 'in all rows'} at most {max(few):.1%}")
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
