"""From scores to factors: choose the layers, cut each matrix's block, factorise it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.cluster.ranks import HERE, Placement, spread
from orchestrator.models.adapters import write_start
from orchestrator.models.families import AXES, FAMILIES, Geometry, ModelFamily, Pair, pairs
from orchestrator.models.loading import read_config, tokens_of
from orchestrator.step import Track, silent
from orchestrator.teacher.exact import Exact
from orchestrator.teacher.files import FILE, LAYERS
from orchestrator.teacher.teacher import Teacher
from orchestrator.teacher.teacher_pass import device
from orchestrator.transfer.blocks import BlockSelection
from orchestrator.transfer.layers import LayerSelection
from orchestrator.transfer.lowrank import Factors, truncated_svd
from orchestrator.transfer.metrics import SensitivityMetric
from orchestrator.transfer.place import Block, Chooser, Place, sums

if TYPE_CHECKING:
    from orchestrator.transfer.place import Sums

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
    config = read_config(Path(student), "student")
    target, own = FAMILIES[config.model_type], Geometry.of(config)
    tokens = tokens_of(Path(teacher), Path(student)) if "embedding" in modules else None
    source = Teacher.open(Path(teacher), measured / FILE, Exact(by, measured, recorded) if exact else None, tokens)
    scores = json.loads((measured / LAYERS).read_text())
    chosen = selection.select(scores, own.layers)
    site = Site(source, own, chosen)
    matrices = list(pairs(source.geometry, own, tuple(modules)))
    todo, logs = list(by_module(target, matrices)), partial or folder
    with placement.settled() as settled:
        sums = spread(settled, site.sums, matrices, logs) if exact else map(site.sums, matrices)
        cutter = Cutter(site, target, blocks.prepared(sums), rank)
        cuts = spread(settled, cutter.cut, todo, logs)
        made = list(track(cuts, "extracting blocks", len(todo)))
    starts, record = {}, Record(chosen, [scores[layer] for layer in chosen], rank, tokens)
    flat: dict[str, Tensor] = {}
    for parts, cut in zip(todo, made, strict=True):
        name = target.module(parts[0].role, parts[0].layer)
        starts[name] = (cut.factors.u * cut.factors.s, cut.factors.vh)
        record.add(f"{name}.weight", cut)
        flat |= {f"{name}.weight{part}": block.flat for part, block in cut.places() if block.flat is not None}
    embeddings = frozenset({target.module("embed", None)})
    write_start(folder, starts, base_name=student_name, embeddings=embeddings)
    if flat:
        save_file(flat, folder / "indices.safetensors")
    (folder / "transfer.json").write_text(json.dumps(record.content(), indent=1) + "\n")
    (folder / "README.md").write_text(CARD)
    return {"layers": list(chosen), "matrices": len(starts)}


def by_module(family: ModelFamily, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, ...]]:
    """The matrices of one module together, in the order of its rows."""
    modules: dict[str, dict[str, Pair]] = {}
    for pair in pairs:
        modules.setdefault(family.module(pair.role, pair.layer), {})[pair.role] = pair
    for parts in modules.values():
        yield tuple(parts[role] for role in family.sharers(next(iter(parts))))


@dataclass(frozen=True)
class Cut:
    """What becomes of one module of the student: each role's block, and one factorisation of all of them."""

    blocks: dict[str, Block]
    factors: Factors
    energy: float  # the share of the blocks' squared norm that the factors keep

    def places(self) -> Iterator[tuple[str, Block]]:
        """Each block with what its name ends in: nothing where a role has the module to itself."""
        for role, block in self.blocks.items():
            yield f":{role}" if len(self.blocks) > 1 else "", block


@dataclass(frozen=True)
class Site:
    """Where blocks are cut: the teacher, with the layer that each of the student's layers is taken from."""

    teacher: Teacher
    student: Geometry
    chosen: tuple[int, ...]

    def layer(self, pair: Pair) -> int | None:
        """The teacher's."""
        return None if pair.layer is None else self.chosen[pair.layer]

    def place(self, pair: Pair) -> Place:
        """What is wanted of the teacher's matrix."""
        heads = self.teacher.geometry.head_dim, self.student.head_dim
        name = self.teacher.family.parameter(pair.role, self.layer(pair))
        return Place(name, pair.student, AXES[pair.role], heads, pair.layer)

    def sums(self, pair: Pair) -> Sums:
        """A matrix's S by row and by column: as measured, but for matrices whose columns only exact scores tell."""
        shared = len(self.teacher.family.sharers(pair.role)) > 1
        teacher = self.teacher if shared else replace(self.teacher, exact=None)
        return self.place(pair), *sums(teacher.scores(pair, self.layer(pair)))


@dataclass(frozen=True)
class Cutter:
    """All that it takes to cut any one module, as a value that can be sent to where the work is done."""

    site: Site
    family: ModelFamily  # the student's
    structure: Chooser
    rank: int

    def cut(self, parts: tuple[Pair, ...]) -> Cut:
        """One module's blocks and their factors."""
        teacher, layer = self.site.teacher, self.site.layer(parts[0])
        blocks = {
            pair.role: self.structure.select(teacher.scores(pair, layer), self.site.place(pair)) for pair in parts
        }
        weights = [blocks[pair.role].take(teacher.weight(pair, layer)).float() for pair in parts]
        whole = weights[0]
        if len(parts) > 1:
            whole = torch.empty(sum(len(part) for part in weights), whole.shape[1])
            for pair, part in zip(parts, weights, strict=True):
                whole[self.family.rows(pair.role, self.site.student)] = part
        factors = truncated_svd(whole.to(device()), self.rank).to("cpu")
        return Cut(blocks, factors, float(factors.s.square().sum() / whole.square().sum()))


@dataclass
class Record:
    """What transfer.json says."""

    layers: tuple[int, ...]
    layer_scores: list[float]
    rank: int
    tokens: Tensor | None

    def __post_init__(self) -> None:
        self.windows: dict[str, Any] = {}
        self.indices: dict[str, Any] = {}
        self.singular_values: dict[str, list[float]] = {}
        self.energy_kept: dict[str, float] = {}

    def add(self, name: str, cut: Cut) -> None:
        """One student parameter's block; by role where it holds several."""
        described: dict[str, Any] = {role: block.describe() for role, block in cut.blocks.items()}
        described = {role: place or {"file": "indices.safetensors"} for role, place in described.items()}
        windows = all(block.origin is not None for block in cut.blocks.values())
        places = self.windows if windows else self.indices
        places[name] = described if len(described) > 1 else next(iter(described.values()))
        self.singular_values[name] = cut.factors.s.tolist()
        self.energy_kept[name] = cut.energy

    def content(self) -> dict[str, Any]:
        """As JSON; only the form of places that the structure has."""
        places = {"windows": self.windows} if self.windows else {"indices": self.indices}
        return {
            "layers": list(self.layers),
            "layer_scores": self.layer_scores,
            **places,
            **self._vocabulary(),
            "rank": self.rank,
            "singular_values": self.singular_values,
            "energy_kept": self.energy_kept,
        }

    def _vocabulary(self) -> dict[str, Any]:
        if self.tokens is None:
            return {}
        return {"vocabulary": {"shared": int((self.tokens >= 0).sum()), "student": len(self.tokens)}}
