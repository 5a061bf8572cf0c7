"""What a training is given by the steps that its arm needs, as the arm takes it: values, not files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

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
}


def read(given: Mapping[str, Path]) -> dict[Need, Any]:
    """Everything, by the arm's own names."""
    return {need: reader(given[need]) for need, reader in READERS.items() if need in given}


def by_row(found: Mapping[Need, Any], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """What a step says of training rows, by their ids; it may have seen only some."""
    labels = found.get("labels", {})
    return {row.id: said for row in encoded if (said := labels.get(file_of(row.id))) is not None}
