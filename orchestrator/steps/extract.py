"""From scores to factors: choose the layers, cut each matrix's block, factorise it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save_file

from orchestrator.cluster.ranks import HERE, Placement, spread
from orchestrator.models.adapters import write_start
from orchestrator.models.families import AXES, FAMILIES, Geometry, Pair, pairs
from orchestrator.models.loading import read_config
from orchestrator.steps.exact import Exact
from orchestrator.steps.scores import FILE
from orchestrator.steps.step import Track, silent
from orchestrator.steps.teacher import Teacher
from orchestrator.transfer.blocks import Block, BlockSelection, Place
from orchestrator.transfer.layers import LayerSelection
from orchestrator.transfer.lowrank import Factors, truncated_svd
from orchestrator.transfer.metrics import SensitivityMetric

CARD = """# Extracted factors

B0 = U·S and A0 = Vᵀ of blocks of a teacher, in the form of a LoRA adapter for a student. **Loaded by itself, this
adapter adds the blocks to the student's weights**, which changes its function: it is a start for training, where
the same product is taken away from the base. `transfer.json` says where each block was cut.
"""


def extract(
    folder: Path,
    *,
    measured: Path,
    recorded: Path | None = None,
    teacher: str,
    student: str,
    student_name: str,
    metric: dict[str, Any],
    exact: bool,
    layers: dict[str, Any],
    structure: dict[str, Any],
    modules: list[str],
    rank: int,
    placement: Placement = HERE,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write B0 and A0 of every extracted matrix as an adapter folder, and transfer.json beside them."""
    selection = TypeAdapter[Any](LayerSelection).validate_python(layers)
    blocks = TypeAdapter[Any](BlockSelection).validate_python(structure)
    by = TypeAdapter[Any](SensitivityMetric).validate_python(metric)
    source = Teacher.open(Path(teacher), measured / FILE, Exact(by, measured, recorded) if exact else None)
    config = read_config(Path(student), "student")
    target, own = FAMILIES[config.model_type], Geometry.of(config)
    scores = json.loads((measured / "layers.json").read_text())
    chosen = selection.select(scores, own.layers)
    cutter = Cutter(source, own, chosen, blocks, rank)
    todo = list(pairs(source.geometry, own, tuple(modules)))
    starts, record, flat = {}, Record(chosen, [scores[layer] for layer in chosen], rank), {}
    with placement.settled() as settled:
        cuts = spread(settled, cutter.cut, todo, partial or folder)
        made = list(track(cuts, "extracting blocks", len(todo)))
    for pair, (block, factors, energy) in zip(todo, made, strict=True):
        name = target.module(pair.role, pair.layer)
        starts[name] = (factors.u * factors.s, factors.vh)
        record.add(f"{name}.weight", block, factors, energy)
        if block.flat is not None:
            flat[f"{name}.weight"] = block.flat
    embeddings = frozenset({target.module("embed", None)})
    write_start(folder, starts, base_name=student_name, embeddings=embeddings)
    if flat:
        save_file(flat, folder / "indices.safetensors")
    (folder / "transfer.json").write_text(json.dumps(record.content(), indent=1) + "\n")
    (folder / "README.md").write_text(CARD)
    return {"layers": list(chosen), "matrices": len(starts)}


@dataclass(frozen=True)
class Cutter:
    """All that it takes to cut any one matrix, as a value that can be sent to where the work is done."""

    teacher: Teacher
    student: Geometry
    chosen: tuple[int, ...]  # the teacher's layer of each student layer
    blocks: Any
    rank: int

    def cut(self, pair: Pair) -> tuple[Block, Factors, float]:
        """One matrix's block, its factors, and the share of the block's squared norm that they keep."""
        layer = None if pair.layer is None else self.chosen[pair.layer]
        heads = self.teacher.geometry.head_dim, self.student.head_dim
        name = self.teacher.family.parameter(pair.role, layer)
        place = Place(name, pair.student, AXES[pair.role], heads, pair.layer)
        block = self.blocks.select(self.teacher.scores(pair, layer), place)
        weights = block.take(self.teacher.weight(pair, layer)).float()
        factors = truncated_svd(weights, self.rank)
        return block, factors, float(factors.s.square().sum() / weights.square().sum())


@dataclass
class Record:
    """What transfer.json says."""

    layers: tuple[int, ...]
    layer_scores: list[float]
    rank: int

    def __post_init__(self) -> None:
        self.windows: dict[str, Any] = {}
        self.indices: dict[str, Any] = {}
        self.singular_values: dict[str, list[float]] = {}
        self.energy_kept: dict[str, float] = {}

    def add(self, name: str, block: Block, factors: Factors, energy: float) -> None:
        """One student parameter's block."""
        if block.origin is not None:
            self.windows[name] = block.describe()
        else:
            self.indices[name] = block.describe() or {"file": "indices.safetensors"}
        self.singular_values[name] = factors.s.tolist()
        self.energy_kept[name] = energy

    def content(self) -> dict[str, Any]:
        """As JSON; only the form of places that the structure has."""
        places = {"windows": self.windows} if self.windows else {"indices": self.indices}
        return {
            "layers": list(self.layers),
            "layer_scores": self.layer_scores,
            **places,
            "rank": self.rank,
            "singular_values": self.singular_values,
            "energy_kept": self.energy_kept,
        }
