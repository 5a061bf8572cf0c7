"""Whether the teacher knows the task: three answers, by the statistics of the verdict, and what follows from each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.verdict.estimates import Result, share_interval
from orchestrator.verdict.gate import answer_of, gate_of
from orchestrator.verdict.verdict import Verdict, judge
from orchestrator.verdict.words import doubt, gate_line

SWEEPS = 1000
ARMS = ("lora", "transfer")


def judged(gate: dict[str, Any], **share: float) -> Verdict:
    """The verdict of arms that answer this share of the examples, steadily over six seeds."""
    draw = np.random.default_rng(0)
    results = [
        Result(arm, None, None, 8, draw.binomial(1, right, (6, 200)).astype(float), (*range(6),))
        for arm, right in share.items()
    ]
    return judge(results, "lora", gate)


def scored(right: int, of: int = 200) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


def test_a_difference_from_the_student_is_the_paired_one() -> None:
    draw = np.random.default_rng(0)
    teacher, student = draw.binomial(1, 0.4, 200).astype(float), draw.binomial(1, 0.25, 200).astype(float)
    found, right = gate_of({"teacher": list(teacher)}, list(student), None), stats.ttest_rel(teacher, student)
    assert found["p"] == pytest.approx(right.pvalue)
    assert found["ci95"] == pytest.approx([*right.confidence_interval()])
    assert (found["answer"], found["set"], found["least"]) == ("knows it", False, student.mean())


def test_a_score_is_held_against_the_gate_by_its_interval_on_the_leaderboard() -> None:
    found = gate_of({"teacher": scored(0), "teacher_tuned": scored(171)}, scored(0), 0.8)
    assert tuple(found["ci95"]) == pytest.approx(share_interval(np.array([scored(171)]))[1:])
    assert [round(limit, 3) for limit in found["ci95"]] == [0.806, 0.904]  # the demo's
    assert found["p"] == pytest.approx(stats.ttest_1samp(scored(171), 0.8).pvalue)
    assert (found["of"], found["answer"]) == ("teacher_tuned", "knows it")
    assert gate_line(found) == (
        "teacher_tuned scores 0.855 (95 %: 0.806 to 0.904); at least 0.8 is needed for a claim: passed"
    )


@pytest.mark.parametrize(
    ("right", "student", "least", "answer"),
    [
        (1, 0, None, "can't tell"),  # one example is no knowledge
        (0, 0, None, "can't tell"),
        (200, 200, None, "can't tell"),
        (20, 2, None, "knows it"),
        (2, 20, None, "doesn't"),
        (200, 0, None, "knows it"),
        (165, 0, 0.8, "can't tell"),
        (171, 0, 0.8, "knows it"),
        (140, 0, 0.8, "doesn't"),
        (0, 0, 0.0, "knows it"),  # lifts the gate
        (0, 0, 0.01, "can't tell"),  # none of 200 may be one of 100
        (0, 0, 0.05, "doesn't"),
        (200, 0, 0.99, "can't tell"),
        (200, 0, 0.95, "knows it"),
    ],
)
def test_three_answers(right: int, student: int, least: float | None, answer: str) -> None:
    assert gate_of({"teacher": scored(right)}, scored(student)[::-1], least)["answer"] == answer


@pytest.mark.parametrize("score", [0.01, 0.03, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_a_teacher_like_the_student_is_seldom_said_to_know_more(score: float, alike: float) -> None:
    """Nor the better one of two: in 5 % of sweeps at most, of which 1,000 tell to within 2.3 %."""
    draw, examples, said = np.random.default_rng(1), 200, {"one": 0, "better of two": 0}
    for _ in range(SWEEPS):
        hard = draw.random(examples)  # what the models have in common
        student, teacher, tuned = (
            (np.where(draw.random(examples) < alike, hard, draw.random(examples)) < score).astype(float).tolist()
            for _ in range(3)
        )
        said["one"] += gate_of({"teacher": teacher}, student, None)["answer"] == "knows it"
        both = {"teacher": teacher, "teacher_tuned": tuned}
        said["better of two"] += gate_of(both, student, None)["answer"] == "knows it"
    assert said["one"] / SWEEPS <= 0.045 and said["better of two"] / SWEEPS <= 0.073


@pytest.mark.parametrize("least", [0.05, 0.2, 0.5, 0.8])
def test_a_teacher_exactly_at_the_gate_is_seldom_said_to_pass_it(least: float) -> None:
    draw = np.random.default_rng(2)
    said = [gate_of({"teacher": one.tolist()}, None, least)["answer"] for one in draw.random((SWEEPS, 200)) < least]
    assert said.count("knows it") / SWEEPS <= 0.073


def test_where_it_cannot_be_told_a_claim_stands_beside_a_warning() -> None:
    helped = {"transfer": 0.9, "lora": 0.1, "spectrum_control": 0.1}
    gate = gate_of({"teacher": scored(1)}, scored(0), None)
    told = judged(gate, **helped)
    assert told.headline.startswith("The teacher helped")
    assert told.warnings[0] == (
        "Warning: the teacher scores 0.01 on the task and the untouched student 0.00 (difference, 95 %: -0.005 to"
        " +0.015): it may have nothing to hand over, which can't be told (--set gate=0.5 makes a score the condition)."
    )
    assert told.warnings[0] in told.lines()
    assert gate_line(gate).endswith("more than the student's 0.000 is needed for a claim: can't tell")
    near = judged(gate_of({"teacher": scored(165)}, scored(0), 0.8), **helped)
    assert near.headline.startswith("The teacher helped")
    assert near.warnings[0].endswith("and whether it passes the gate of 0.80 can't be told.")


def test_a_teacher_that_is_worse_bars_claims_in_its_favour_alone() -> None:
    gate = gate_of({"teacher": scored(2)}, scored(20), None)
    told = judged(gate, transfer=0.9, lora=0.1)
    assert told.headline.startswith("No claim: the teacher was not seen to be better at the task than the untouched")
    assert "nothing is claimed in favour of what is taken from it (--set gate=0" in told.warnings[0]
    assert judged(gate, transfer=0.1, lora=0.9).headline.startswith("Transfer hurt")
    missed = judged(gate_of({"teacher": scored(2)}, scored(0), 0.5), transfer=0.9, lora=0.1)
    assert missed.headline.startswith("No verdict: the teacher scores 0.01 on the task, below the gate of 0.50")


def test_without_an_arm_that_asks_the_teacher_a_student_is_no_doubt() -> None:
    unsure = gate_of({"teacher": scored(0)}, scored(0), None)
    assert doubt(unsure, ARMS) and not doubt(unsure, ("lora", "pissa", "spectrum_control"))
    assert not doubt(gate_of({"teacher": scored(20)}, scored(0), None), ARMS)
    assert doubt(gate_of({"teacher": scored(0)}, scored(0), 0.5), ("lora", "pissa"))  # it was asked for


@pytest.mark.parametrize(
    ("gate", "answer"),
    [
        ({"score": 0.9, "passed": True}, "knows it"),
        ({"score": 0.1, "passed": False}, "doesn't"),
        ({"score": None, "passed": False}, None),
    ],
)
def test_a_record_of_an_older_version_is_read(gate: dict[str, Any], answer: str | None) -> None:
    assert answer_of({"set": True, "least": 0.5, **gate}) == answer
    assert gate_line({"set": True, "least": 0.5, **gate}).endswith("not passed" if answer != "knows it" else ": passed")


def test_a_teacher_without_a_score_has_no_answer() -> None:
    assert gate_of({}, scored(0), None)["answer"] is None
    assert gate_of({"teacher": scored(20)}, None, None) | {"p": 0} == {
        "set": False, "least": 0.0, "score": 0.1, "of": "teacher", "answer": "knows it", "p": 0,
        "ci95": pytest.approx([0.058, 0.142], abs=1e-3),
    }  # fmt: skip
