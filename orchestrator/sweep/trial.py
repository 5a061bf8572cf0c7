"""A trial as a value: which score is wanted, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.step import Step


@dataclass(frozen=True)
class Trial:
    """A score to reach: the evaluation step, and what it is called."""

    label: str
    step: Step
    params: dict[str, Any] = field(default_factory=dict)
    after: tuple[Trial, ...] = ()  # scores of its adapter elsewhere, once it is there
    of: str | None = None  # that one's fingerprint
