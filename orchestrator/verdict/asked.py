"""What a sweep asks before anything is seen, and what one comparison comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.transfer.arms import ARMS

BOUNDS = ("student", "teacher", "teacher_tuned")  # rows that bound the scale: nothing is claimed of them
ABOUT = {kind: arm.starts_at for kind, arm in ARMS.items()}
CONTROLS = {kind: ABOUT[kind] for kind, arm in ARMS.items() if arm.is_control}
CONTROLLED = {kind: ARMS[kind].control_of for kind in CONTROLS}
NEEDED = {kind: arm.judged_by for kind, arm in ARMS.items() if arm.judged_by}  # for whose doing it was
OF_TEACHER = frozenset(kind for kind, arm in ARMS.items() if arm.of_teacher())  # that take over what a teacher knows
Outcome = Literal["better", "worse", "can't tell", "described"]


@dataclass(frozen=True)
class Question:
    """What was asked before anything was seen: does `arm` do better than each of `against`?"""

    arm: str
    against: tuple[str, ...]

    def pairs(self) -> list[tuple[str, str]]:
        """What is compared."""
        return [(self.arm, other) for other in self.against]

    @classmethod
    def of(cls, arms: Sequence[str], baseline: str) -> Question:
        """Transfer against every other arm of the sweep; without transfer, each other arm against the baseline."""
        baseline = judged_by(arms, baseline)
        trained = [arm for arm in dict.fromkeys(arms) if arm not in BOUNDS]
        arm = "transfer" if "transfer" in trained else baseline
        return cls(arm, _in_order([other for other in trained if other != arm], baseline))


def questions(arms: Sequence[str], baseline: str) -> tuple[Question, ...]:
    """What a sweep asks. Where there is more than transfer that brings its own control, each such arm is asked about by
    itself: against the arms that have none, and against its own controls.
    """
    baseline = judged_by(arms, baseline)
    trained = [arm for arm in dict.fromkeys(arms) if arm not in BOUNDS]
    ways = [arm for arm in trained if arm in NEEDED]
    if not {*ways} - {"transfer"}:
        return (Question.of(arms, baseline),)
    rivals = [arm for arm in trained if arm not in ways and arm not in CONTROLS]
    own = {way: [arm for arm in trained if CONTROLLED.get(arm) == way] for way in ways}
    return tuple(Question(way, _in_order([*rivals, *own[way]], baseline)) for way in ways)


def counted(questions: Sequence[Question]) -> int:
    """How many comparisons are asked for, those that can't be made too: p-values are corrected for as many."""
    return sum(len(one.against) for one in questions)


def _in_order(arms: Sequence[str], baseline: str) -> tuple[str, ...]:
    return tuple(sorted(arms, key=lambda arm: (arm != baseline, arm not in CONTROLS)))


def judged_by(arms: Sequence[str], baseline: str) -> str:
    """The baseline; in place of what is judged, or of a model that bounds the scale, plain LoRA or the first arm.

    So, too, in place of a way's own control, against which only that way is held.
    """
    several = {*NEEDED} & {*arms} - {"transfer"}
    others = (*NEEDED, *BOUNDS, *(CONTROLS if several else ()))
    if baseline not in others:
        return baseline
    return next((arm for arm in ("lora", *arms) if arm in arms and arm not in others), baseline)


@dataclass(frozen=True)
class Comparison:
    """One arm against another, each at the settings that were chosen for it."""

    arm: str
    against: str
    delta: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    seeds: int
    outcome: Outcome
    smallest: float | None  # the true difference that would have been claimed in four of five such sweeps
    why: str = ""  # it is described and not claimed
