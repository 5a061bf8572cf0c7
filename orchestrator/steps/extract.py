"""From scores to factors: choose the layers, cut each matrix's block, factorise it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.models.adapters import write_start
from orchestrator.models.families import FAMILIES, Geometry, ModelFamily, Pair, pairs
from orchestrator.models.loading import Weights, read_config
from orchestrator.steps.measure import FILE, read_scores
from orchestrator.steps.step import Track, silent
from orchestrator.transfer.blocks import Block, BlockSelection
from orchestrator.transfer.layers import LayerSelection
from orchestrator.transfer.lowrank import Factors, truncated_svd
from orchestrator.transfer.sensitivity import Scores

CARD = """# Extracted factors

B0 = U·S and A0 = Vᵀ of blocks of a teacher, in the form of a LoRA adapter for a student. **Loaded by itself, this
adapter adds the blocks to the student's weights**, which changes its function: it is a start for training, where
the same product is taken away from the base. `transfer.json` says where each block was cut.
"""


def extract(
    folder: Path,
    *,
    measured: Path,
    teacher: str,
    student: str,
    student_name: str,
    layers: dict[str, Any],
    structure: dict[str, Any],
    modules: list[str],
    rank: int,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write B0 and A0 of every extracted matrix as an adapter folder, and transfer.json beside them."""
    selection = TypeAdapter[Any](LayerSelection).validate_python(layers)
    blocks = TypeAdapter[Any](BlockSelection).validate_python(structure)
    source = Teacher.open(Path(teacher), measured / FILE)
    config = read_config(Path(student), "student")
    target, own = FAMILIES[config.model_type], Geometry.of(config)
    scores = json.loads((measured / "layers.json").read_text())
    chosen = selection.select(scores, own.layers)
    todo = list(pairs(source.geometry, own, tuple(modules)))
    starts, record, flat = {}, Record(chosen, [scores[layer] for layer in chosen], rank), {}
    for pair in track(todo, "extracting blocks", len(todo)):
        name = target.module(pair.role, pair.layer)
        block, factors, energy = cut(source, pair, None if pair.layer is None else chosen[pair.layer], blocks, rank)
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


def cut(source: Teacher, pair: Pair, layer: int | None, blocks: Any, rank: int) -> tuple[Block, Factors, float]:
    """One matrix's block, its factors, and the share of the block's squared norm that they keep."""
    name = source.family.parameter(pair.role, layer)
    scores = source.scores(pair, layer)
    block = blocks.select(scores, pair.student, name)
    weights = block.take(source.weight(pair, layer)).float()
    factors = truncated_svd(weights, rank)
    return block, factors, float(factors.s.square().sum() / weights.square().sum())


@dataclass
class Teacher:
    """A teacher's matrices and their scores, one at a time: the model itself is never loaded."""

    family: ModelFamily
    geometry: Geometry
    weights: Weights
    measured: Path

    @classmethod
    def open(cls, folder: Path, measured: Path) -> Teacher:
        """From its folder and its measured sensitivities."""
        config = read_config(folder, "teacher")
        return cls(FAMILIES[config.model_type], Geometry.of(config), Weights(folder), measured)

    def weight(self, pair: Pair, layer: int | None) -> Tensor:
        """The matrix to cut from: K/V heads repeated for their groups, rows filled up to a longer padded vocabulary."""
        matrix = self.weights.get(self._name(pair, layer))
        return self._fitted(matrix, pair, self.geometry.head_dim)

    def scores(self, pair: Pair, layer: int | None) -> Scores:
        """Its S, in the same places.

        A repeated head's scores are divided by the group's size: a lower bound of what the repeated parameters would
        score (1.1 to 1.8 times that), since the absolute value is taken of the group's summed gradient.
        """
        scores = read_scores(self.measured, self._name(pair, layer))
        g = scores.granularity
        tiles = self._fitted(scores.tiles, pair, self.geometry.head_dim // g, g) / pair.repeats
        if g == 1:
            return Scores(tiles, scores.rows, scores.cols, 1)
        rows = self._fitted(scores.rows[:, None], pair, self.geometry.head_dim)[:, 0] / pair.repeats
        return Scores(tiles, rows, scores.cols, g)

    def _name(self, pair: Pair, layer: int | None) -> str:
        name = self.family.parameter(pair.role, layer)
        return name if name in self.weights else self.family.parameter("embed", None)  # a tied head

    def _fitted(self, matrix: Tensor, pair: Pair, head_rows: int, granularity: int = 1) -> Tensor:
        if pair.repeats > 1:
            heads = matrix.view(-1, head_rows, matrix.shape[1])
            return heads.repeat_interleave(pair.repeats, 0).flatten(0, 1)
        if pair.role in ("embed", "head"):
            rows = -(-pair.teacher[0] // granularity)
            return torch.nn.functional.pad(matrix[:rows], (0, 0, 0, max(0, rows - len(matrix))))
        return matrix


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
