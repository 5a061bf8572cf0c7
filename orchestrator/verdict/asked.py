"""What a sweep asks before anything is seen, and what one comparison comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.transfer.arms import ARMS

BOUNDS = ("student", "teacher", "teacher_tuned")  # rows that bound the scale: nothing is claimed of them
ABOUT = {kind: arm.starts_at for kind, arm in ARMS.items()}
CONTROLS = {kind: ABOUT[kind] for kind, arm in ARMS.items() if arm.is_control}
OF_TEACHER = frozenset(kind for kind, arm in ARMS.items() if arm.of_teacher())  # that take over what a teacher knows
Outcome = Literal["better", "worse", "can't tell", "described"]


@dataclass(frozen=True)
class Question:
    """What was asked before anything was seen: does `arm` do better than each of `against`?"""

    arm: str
    against: tuple[str, ...]

    @classmethod
    def of(cls, arms: Sequence[str], baseline: str) -> Question:
        """Transfer against every other arm of the sweep; without transfer, each other arm against the baseline."""
        baseline = judged_by(arms, baseline)
        trained = [arm for arm in dict.fromkeys(arms) if arm not in BOUNDS]
        arm = "transfer" if "transfer" in trained else baseline
        others = [other for other in trained if other != arm]
        return cls(arm, tuple(sorted(others, key=lambda other: (other != baseline, other not in CONTROLS))))


def judged_by(arms: Sequence[str], baseline: str) -> str:
    """The baseline; in place of what is judged, or of a model that bounds the scale, plain LoRA or the first arm."""
    if baseline != "transfer" and baseline not in BOUNDS:
        return baseline
    return next((arm for arm in ("lora", *arms) if arm in arms and arm not in ("transfer", *BOUNDS)), baseline)


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
    smallest: float | None  # the true difference that would have been claimed in four of five such sweeps
    why: str = ""  # it is described and not claimed
