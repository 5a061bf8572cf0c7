"""Does the teacher know the task at all? Asked before anything is trained, with the verdict's own statistics.

    gate = gate_of({"teacher": scores}, student=theirs, least=None)
    gate["answer"]          # "knows it", "doesn't" or "can't tell"

Two untouched models' scores are often near zero, and one example more is no knowledge. Nor is it ignorance: a model
that fails at a prompt's form may hold what the task needs. So only what was seen is held against a teacher. One that is
worse than the student bars claims in its favour; where it can't be told, claims stand beside a warning, since a control
that transfer beats says more about the teacher than a score of zero does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from orchestrator.verdict.estimates import Result, difference

Answer = Literal["knows it", "doesn't", "can't tell"]


def gate_of(
    teachers: Mapping[str, Sequence[float]], student: Sequence[float] | None, least: float | None
) -> dict[str, Any]:
    """The best of the teacher's rows against `least`, or where that is None against the untouched student.

    Scores are one an example, in the same order. `ci95` is that of the teacher's score where a least one is set, as on
    the leaderboard, and otherwise of its paired difference from the student's; `p` is of neither being above the other.
    By the interval, a teacher that is exactly at the gate is said to know the task in at most 5 % of sweeps; above 0.9
    more often, since the interval is too narrow there. Without any score the answer is None.
    """
    floor = least if least is not None else float(np.mean(student)) if student is not None else 0.0
    told: dict[str, Any] = {"set": least is not None, "least": floor, "of": "teacher"}
    if not teachers:
        return told | {"score": None, "answer": None, "p": None, "ci95": None}
    of, own = max(teachers.items(), key=lambda one: float(np.mean(one[1])))
    against = student if least is None and student is not None else [floor] * len(own)
    found = difference(*(Result(of, None, None, None, np.array([scores]), (0,)) for scores in (own, against)))
    assert found
    low, high = found.limits()
    if least is None:
        answer: Answer = "knows it" if low > 0 else "doesn't" if high < 0 else "can't tell"
    else:
        low, high = max(0.0, low + floor), min(1.0, high + floor)
        answer = "knows it" if low >= floor else "doesn't" if high < floor else "can't tell"
    return told | {"of": of, "score": float(np.mean(own)), "answer": answer, "p": found.p, "ci95": [low, high]}


def answer_of(gate: Mapping[str, Any]) -> Answer | None:
    """A recorded gate's; one of an older version was passed or not, by the scores alone."""
    if "answer" in gate:
        return gate["answer"]
    return None if gate["score"] is None else "knows it" if gate["passed"] else "doesn't"
