"""Several carried updates as one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from orchestrator.transfer.arms.base import ARMS
from orchestrator.transfer.arms.carried import Carried, twins


class Merged(Carried):
    """The teacher's update carried over in several ways, merged by PEFT: each is wrong elsewhere.

    `linear` averages the factors, `cat` the updates themselves; `ties` (arXiv 2306.01708) drops small entries and those
    whose sign is outvoted, `dare_linear` (arXiv 2311.03099) entries at random, and makes up for them.
    """

    kind: Literal["merged"] = "merged"
    starts_at: ClassVar[str] = "the teacher's update carried over in several ways, merged"
    of: tuple[str, ...] = Field(("theseus", "ridge"), min_length=2)
    by: Literal["linear", "cat", "ties", "dare_linear"] = "cat"
    density: float = Field(0.5, gt=0, le=1)  # of the entries that ties and dare keep

    @field_validator("of")
    @classmethod
    def _of(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        ways = {kind: arm for kind, arm in ARMS.items() if issubclass(arm, Carried) and arm.takes_update}
        known = [kind for kind, arm in ways.items() if kind != "merged" and not arm.is_control and not arm.by_role]
        if unknown := [kind for kind in value if kind not in known]:
            raise ValueError(f"{unknown[0]!r} carries no update over; known: {', '.join(known)}")
        if len({*value}) < len(value):
            raise ValueError("the same way twice is that way; name each once")
        return value

    def ways(self) -> dict[str, dict[str, Any]]:
        """The arms whose updates are merged, each with this one's layers and neurons."""
        shared = {"layers": self.layers.model_dump(), "neurons": self.neurons}
        return {kind: {"kind": kind, **shared} for kind in self.of}


twins(Merged, "random_map", "spectrum")
