"""What a training is given by the steps that its arm needs, as the arm takes it: values, not files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.carry.excess import read_excess
from orchestrator.carry.semantics import read_aligned
from orchestrator.models import adapters
from orchestrator.tasks.template import Encoded
from orchestrator.teacher.by_example import file_of
from orchestrator.teacher.labels import read_labels
from orchestrator.teacher.states import read_states
from orchestrator.transfer.arms import Need
from orchestrator.transfer.lowrank import Factors


def _blocks(folder: Path) -> dict[str, Factors]:
    """U, S and Vᵀ by module, of what was extracted as B0 = U·S and A0 = Vᵀ: B0's columns have the lengths S."""
    found = {}
    for name, (b0, a0) in adapters.read_start(folder).items():
        s = b0.norm(dim=0)
        found[name] = Factors(b0 / s.clamp_min(torch.finfo(s.dtype).tiny), s, a0)
    return found


READERS: dict[Need, Callable[[Path], Any]] = {
    "factors": _blocks,
    "labels": read_labels,
    "teacher_states": read_states,
    "student_states": read_states,
    "teacher_update": adapters.read_update,
    "carried": adapters.read_update,
    "excess": read_excess,
    "aligned_states": read_aligned,
}


def read(given: Mapping[str, Path]) -> dict[Need, Any]:
    """Everything, by the arm's own names."""
    return {need: reader(given[need]) for need, reader in READERS.items() if need in given}


def by_row(said: Mapping[str, Any], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """What is said of training rows, by their ids in place of their files' names; of some nothing is."""
    return {row.id: one for row in encoded if (one := said.get(file_of(row.id))) is not None}
