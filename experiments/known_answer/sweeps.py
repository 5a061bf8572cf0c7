"""The known-answer pair's sweeps: the demo's protocol (orchestrator/demo.yaml), nothing chosen by which arm wins."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

GRID = [3.0e-3, 8.0e-3, 2.0e-2, 5.0e-2]  # from 1e-3 on, the spectrum control's best rate lay on the upper edge
REPEATS = 8
ARMS = ["lora", "pissa", "transfer", "spectrum_control"]
CONTROLLED = ["lora", "transfer", "spectrum_control"]
STRUCTURES = ["window", "head_aligned", "consistent", "row_column"]


def sweeps(folder: Path, given: dict[str, list[int]]) -> dict[str, dict[str, Any]]:
    """By file name: each teacher at the given indices, and the tuned one by every structure.

    Shuffled, the same units are cut and each is put in another's place: a block keeps its numbers and its spectrum.
    """
    known = {"kind": "given", **given}
    draw = random.Random(0)
    shuffled = {"kind": "given", **{name: draw.sample(units, len(units)) for name, units in given.items()}}
    ungated = {"gate": 0.0}  # these score nothing by construction, and it is for their blocks alone to tell
    return {
        "sweep": sweep(folder / "tuned", {"arm": ARMS, "structure": [known]}) | {"gate": 0.9},
        "widened": sweep(folder / "widened", {"arm": ARMS, "structure": [known]}) | ungated,
        "update": sweep(folder / "update", {"arm": ARMS, "structure": [known]}) | ungated,
        "random": sweep(folder / "random", {"arm": ARMS, "structure": [known]}) | ungated,
        "structures": sweep(folder / "tuned", {"arm": CONTROLLED, "structure": [*STRUCTURES, known, shuffled]}),
        "shuffled": sweep(folder / "update", {"arm": ["lora", "transfer"], "structure": [known, shuffled]}) | ungated,
    }


def sweep(teacher: Path, axes: dict[str, list[Any]]) -> dict[str, Any]:
    """One rank, and the teacher's layers in their order, since it has no more than the student."""
    return {
        "recipe": {
            "teacher": str(teacher),
            "student": "demo-student",
            "task": {"name": "demo"},
            "layers": "0,1,2,3",
            "rank": 8,
            "finetune": {"examples": 576, "batch_size": 36, "dropout": 0.0},
        },
        "axes": axes,
        "lr": GRID,
        "repeats": REPEATS,
        "max_trials": 180,
    }
