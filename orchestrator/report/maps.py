"""Where in the teacher's matrices the sensitivity lies, and which part of each was taken.

    maps_of(extracted, transfer, measured)      # q, k, v, o, gate, up, down of the first and the last kept layer

Names alone are read: the models themselves may be on another machine by the time that a report is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from orchestrator.models.families import FAMILIES, ModelFamily
from orchestrator.teacher.files import FILE

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
CELLS = 64  # a side: more can't be told apart in print
START = "adapter_model.safetensors"


@dataclass(frozen=True)
class Map:
    """One matrix of the teacher: S summed over cells of `step` weights, and what was taken of it."""

    role: str
    layer: int  # the teacher's
    student: int  # the student's layer that it became
    shape: tuple[int, int]
    cells: NDArray[np.float64]
    step: tuple[int, int]
    window: tuple[int, int, int, int] | None = None  # first row, first column, height, width
    rows: list[int] | None = None
    columns: list[int] | None = None
    note: str = ""  # why nothing is marked


def maps_of(extracted: Path, transfer: dict[str, Any], measured: Path) -> list[Map]:
    """The maps of one extraction. OSError or KeyError where a file or a matrix is gone."""
    with safe_open(measured / FILE, framework="numpy") as tensors:
        names = list(tensors.keys())
    places = transfer.get("windows") or transfer.get("indices", {})
    teacher, student = _family(names), _family(places)
    if teacher is None or student is None:
        return []
    found = []
    last = len(transfer["layers"]) - 1
    for own in dict.fromkeys((0, last)):
        for role in (role for role in ROLES if role in student.roles and role in teacher.roles):
            name, layer = student.parameter(role, own), transfer["layers"][own]
            if name not in places:
                continue
            tiles, shape, g = _tiles(measured / FILE, teacher.parameter(role, layer))
            cells, factors = summed(tiles)
            step = factors[0] * g, factors[1] * g
            shared = len(teacher.sharers(role)) > 1 or len(student.sharers(role)) > 1
            place = None if shared else places[name]
            taken = _taken(place, shape, extracted, student.module(role, own))
            found.append(Map(role, layer, own, shape, cells, step, **taken))
    return found


def _tiles(path: Path, name: str) -> tuple[NDArray[np.float64], tuple[int, int], int]:
    """One matrix's sums over tiles, its own shape, and the tiles' side."""
    with safe_open(path, framework="numpy") as tensors:
        tiles = tensors.get_tensor(name).astype(np.float64)
        g = int((tensors.metadata() or {}).get(name, 1))
        sides = [tensors.get_slice(f"{name}:{side}").get_shape()[0] for side in ("rows", "cols")] if g > 1 else []
    rows, columns = sides or tiles.shape
    return tiles, (rows, columns), g


def summed(tiles: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """At most CELLS x CELLS sums, and how many tiles each is over: their total is the matrix's."""
    down, along = (-(-size // CELLS) for size in tiles.shape)
    padded = np.pad(tiles, ((0, -tiles.shape[0] % down), (0, -tiles.shape[1] % along)))
    height, width = padded.shape
    return padded.reshape(height // down, down, width // along, along).sum((1, 3)), (down, along)


def _family(names: Iterable[str]) -> ModelFamily | None:
    """The first that names its layers' matrices so; families that share names share all that is asked here."""
    there = set(names)
    rows = ((row, row.template(role).format(0)) for row in FAMILIES.values() for role in row.roles)
    return next((row for row, name in rows if name in there), None)


def _taken(place: Any, shape: tuple[int, ...], extracted: Path, module: str) -> dict[str, Any]:
    """What transfer.json says of one matrix, in the teacher's rows and columns; None where roles share it."""
    if place is None:
        return {"note": "several roles in one matrix: not marked"}
    if isinstance(place, dict) and "rows" in place:
        return {"rows": place["rows"], "columns": place["columns"]}
    if isinstance(place, dict):
        return {"note": "single weights from everywhere"}
    with safe_open(extracted / START, framework="numpy") as tensors:
        height, width = (
            tensors.get_slice(f"base_model.model.{module}.lora_{side}.weight").get_shape()[axis]
            for side, axis in (("B", 0), ("A", 1))
        )
    if height > shape[0]:
        return {"note": "K/V heads were repeated: not marked"}
    return {"window": (place[0], place[1], height, width)}
