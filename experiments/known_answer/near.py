"""How near each structure comes to the indices that are known: of each kind of unit, the share that is in its place.

    python experiments/known_answer/near.py known-answer --store pkt-store

In place: the student's unit k was cut from the teacher's unit k or from its copy k + d, which do the same. Present:
the share of the student's units of which some copy was cut at all, wherever it was put. A head is there only whole.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from orchestrator import pipeline
from orchestrator.models.families import AXES, FAMILIES, Geometry, pairs
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Sweep
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.cells import expand
from orchestrator.sweep.presets import complete
from orchestrator.verdict.words import label

CALLED = {"residual": "residual", "query": "heads", "key": "K/V heads", "ffn": "neurons"}


def main() -> None:
    """A table: a line a structure, a pair of columns a kind of unit, means over matrices and layers."""
    parser = argparse.ArgumentParser(description="How near each structure comes to the known indices.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", type=Path, default=Path("pkt-store"))
    given = parser.parse_args()
    store = Store(given.store)
    sweep = Sweep.model_validate(complete(yaml.safe_load((given.folder / "structures.yaml").read_text())))
    ready = prepare(sweep.recipe)
    student = ready.student.geometry
    print(f"{'in place / present':<22}" + "".join(f"{name:>16}" for name in CALLED.values()))
    for recipe in expand(sweep):
        if recipe.structure:
            record = json.loads(
                (materialise(pipeline.extract_step(recipe, ready), store) / "transfer.json").read_text()
            )
            found = shares(record, student, ready.teacher.geometry)
            cells = (" / ".join(f"{share:.2f}" for share in found[axis]) for axis in CALLED)
            print(f"{label(recipe.structure.model_dump()):<22}" + "".join(f"{cell:>16}" for cell in cells))


def shares(record: dict[str, Any], student: Geometry, teacher: Geometry) -> dict[str, tuple[float, float]]:
    """By axis what is in place and what is present, over every matrix of a transfer.json that has the axis."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair in pairs(teacher, student, ("attention", "ffn", "embedding")):
        sides = _sides(record, FAMILIES["llama"].parameter(pair.role, pair.layer), pair.student)
        for axis, taken in zip(AXES[pair.role], sides, strict=True):
            if axis != "vocabulary":
                size = student.head_dim if axis in ("query", "key") else 1
                found[axis].append(of_units(taken, size))
    return {axis: (mean(place for place, _ in each), mean(there for _, there in each)) for axis, each in found.items()}


def of_units(taken: list[int], size: int) -> tuple[float, float]:
    """In place and present, of units of `size` dimensions; `taken` are the teacher's, as many as the student has."""
    units = [taken[first : first + size] for first in range(0, len(taken), size)]
    own = [[place % len(taken) for place in unit] for unit in units]  # which of the student's each one copies
    right = [[*range(first, first + size)] for first in range(0, len(taken), size)]
    placed = sum(one == other for one, other in zip(own, right, strict=True))
    return placed / len(right), sum(unit in own for unit in right) / len(right)


def _sides(record: dict[str, Any], name: str, shape: tuple[int, int]) -> tuple[list[int], list[int]]:
    """The teacher's row and column of each of a block's: of a window those that follow its first."""
    if "indices" in record:
        return record["indices"][name]["rows"], record["indices"][name]["columns"]
    first = record["windows"][name]
    return [*range(first[0], first[0] + shape[0])], [*range(first[1], first[1] + shape[1])]


if __name__ == "__main__":
    main()
