"""From the teacher's update to one of the student: module by module, by the arm's maps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from orchestrator.carry.inputs import OUTER, SITES, file_for
from orchestrator.carry.pairs import USES, read_pairs
from orchestrator.cluster.ranks import HERE, Placement, spread
from orchestrator.models import adapters
from orchestrator.models.families import AXES, FAMILIES, Geometry, ModelFamily
from orchestrator.models.loading import Weights, read_config, tokens_of
from orchestrator.step import Track, silent
from orchestrator.teacher.states import read_states
from orchestrator.teacher.teacher_pass import device
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import Carried, Cka
from orchestrator.transfer.arms.twosided import TwoSided
from orchestrator.transfer.matching import monotone, similarity
from orchestrator.transfer.sides import Matrix, Side, Tokens, norm_of

CARRIED = "carried.json"
Part = tuple[str, int | None]  # a role and the student's layer
CARD = """# A carried update

The teacher's update in the student's channels, in the form of a LoRA adapter for the student: loaded by itself it adds
the update to the student's weights. `carried.json` says how good the maps are, module by module.
"""


def carry(
    folder: Path,
    *,
    update: Path,
    teacher: str,
    student: str,
    student_name: str,
    arm: dict[str, Any],
    pairs: Path | None = None,
    of_teacher: Path | None = None,
    of_student: Path | None = None,
    teacher_states: Path | None = None,
    student_states: Path | None = None,
    shuffled: bool = False,
    placement: Placement = HERE,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write B' and A' of every module that the update changes as an adapter folder, and carried.json beside them.

    `shuffled`: the student's tokens in another order than the teacher's. ValueError for layers that the teacher hasn't.
    """
    changed = adapters.read_update(update)
    method = ARMS[arm["kind"]].model_validate(arm)
    assert isinstance(method, Carried)
    if isinstance(method.layers, Cka):
        assert teacher_states and student_states
        after = [read_states(one)[1:] for one in (teacher_states, student_states)]  # the first are the embeddings
        layers = monotone(similarity(*after))
    else:
        depths = [Geometry.of(read_config(Path(name), "model")).layers for name in (teacher, student)]
        layers = method.layers.select([0.0] * depths[0], depths[1])
    site = Site.open(teacher, student, changed, method, layers, (pairs, of_teacher, of_student), shuffled)
    parts = site.parts()
    with placement.settled() as settled:
        found = spread(settled, site.carried, list(parts.values()), partial or folder)
        made = dict(zip(parts, track(found, "carrying the update over", len(parts)), strict=True))
    starts = {name: start for name, (start, _) in made.items()}
    embeddings = frozenset({site.own.family.module("embed", None)}) & starts.keys()
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=student_name, embeddings=embeddings)
    said = {name: facts for name, (_, facts) in made.items()}
    record = {"layers": list(site.layers), "modules": said}
    (folder / CARRIED).write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(CARD)
    keys = dict.fromkeys(key for facts in said.values() for key in facts)
    return {"modules": len(made), **{key: _mean(said, key) for key in keys}}


def _mean(said: dict[str, dict[str, float]], key: str) -> float | None:
    values = [facts[key] for facts in said.values() if math.isfinite(facts[key])]
    return round(sum(values) / len(values), 4) if values else None


@dataclass(frozen=True)
class Model:
    """One of the two: its names, sizes and weights, and what it had at the drawn tokens."""

    family: ModelFamily
    geometry: Geometry
    weights: Weights
    seen: Path | None

    @classmethod
    def open(cls, folder: str, seen: Path | None) -> Model:
        """From its folder and its step's."""
        config = read_config(Path(folder), "model")
        return cls(FAMILIES[config.model_type], Geometry.of(config), Weights(Path(folder)), seen)

    def inputs(self, role: str, layer: int | None) -> Tensor:
        """(k, m) at a role's matrix; of the embedding its outputs."""
        if self.seen is None:
            return torch.empty(0, self.geometry.size(AXES[role][1]))
        name, key = (OUTER, role) if layer is None else (file_for(layer), SITES[role])
        with safe_open(self.seen / name, framework="pt") as tensors:
            found = tensors.get_tensor(key)
        return found if found.dtype == torch.float64 else found.float()

    def weight(self, role: str, layer: int | None) -> Tensor:
        """A role's matrix (n, m); a head that is tied to the embedding is that."""
        name = self.family.parameter(role, layer)
        if name not in self.weights:
            name = self.family.parameter("embed", None)
        matrix = self.weights.get(name)
        return matrix if layer is None else matrix[self.family.rows(role, self.geometry)]

    def outputs(self, role: str, layer: int) -> Tensor:
        """(k, n) of a role's matrix: W·x, without its bias, which no update changes."""
        if self.seen is None:
            return torch.empty(0, self.geometry.size(AXES[role][0]))
        found = self.inputs(role, layer)
        return found @ self.weight(role, layer).to(found.dtype).t()


@dataclass(frozen=True)
class Site:
    """All that it takes to carry any one module over, as a value that can be sent to where the work is done."""

    theirs: Model
    own: Model
    changed: dict[str, adapters.Start]
    maps: TwoSided
    layers: tuple[int, ...]  # for each of the student's layers the teacher's
    tokens: Tensor
    held: int
    order: Tensor | None  # of the student's tokens, where it isn't the teacher's

    @classmethod
    def open(
        cls, teacher: str, student: str, changed: dict[str, adapters.Start], maps: TwoSided, layers: tuple[int, ...],
        found: Sequence[Path | None] = (None, None, None), shuffled: bool = False,
    ) -> Site:  # fmt: skip
        """`found`: the pairs and what each model had at them, where maps are made of that."""
        pairs, *seen = found
        theirs, own = (Model.open(name, at) for name, at in zip((teacher, student), seen, strict=True))
        counts = [sum(map(len, read_pairs(pairs)[use].values())) for use in USES] if pairs else [0, 0]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)) if shuffled else None
        tokens = tokens_of(Path(teacher), Path(student))
        return cls(theirs, own, changed, maps, layers, tokens, counts[1], order)

    def parts(self) -> dict[str, list[Part]]:
        """By the student's module its roles and layers that are changed in the teacher."""
        found: dict[str, list[Part]] = {}
        for role, layer in self.own.geometry.matrices():
            if self._source(role, layer) in self.changed:
                found.setdefault(self.own.family.module(role, layer), []).append((role, layer))
        return found

    def _source(self, role: str, layer: int | None) -> str:
        if role not in self.theirs.family.roles | self.theirs.family.outer:
            return ""  # a gate that the teacher lacks
        return self.theirs.family.module(role, None if layer is None else self.layers[layer])

    def carried(self, parts: list[Part]) -> tuple[adapters.Start, dict[str, float]]:
        """One module's update: of roles that share it each one's, one below the other."""
        made = [self.maps.carry(self._matrix(role, layer)) for role, layer in parts]
        (b, a), facts = made[0]
        if parts[0][0] == "embed":
            b, a = a.t(), b.t()
        if len(self.own.family.sharers(parts[0][0])) > 1:
            b, a = self._stacked(parts, [start for start, _ in made])
            facts = {key: sum(one[key] for _, one in made) / len(made) for key in facts}
        theirs = math.hypot(*(norm_of(*self._changed(role, layer)) for role, layer in parts))
        arrived = norm_of(b, a) / theirs if theirs else math.nan
        return (b.float().cpu().contiguous(), a.float().cpu().contiguous()), facts | {"arrived": arrived}

    def _changed(self, role: str, layer: int | None) -> adapters.Start:
        """The teacher's update of a role's own rows."""
        b, a = self.changed[self._source(role, layer)]
        return (b if layer is None else b[self.theirs.family.rows(role, self.theirs.geometry)]), a

    def _stacked(self, parts: list[Part], made: list[adapters.Start]) -> adapters.Start:
        family, geometry = self.own.family, self.own.geometry
        rows = sum(geometry.shape(role)[0] for role in family.sharers(parts[0][0]))
        b = torch.zeros(rows, sum(start[0].shape[1] for start in made))
        at = 0
        for (role, _), (up, _) in zip(parts, made, strict=True):
            b[family.rows(role, geometry), at : at + up.shape[1]] = up.cpu().float()
            at += up.shape[1]
        return b, torch.cat([down.cpu().float() for _, down in made])

    def _matrix(self, role: str, layer: int | None) -> Matrix:
        rows, columns = AXES[role]
        channels = self._side(role, layer, columns)
        b, a = (factor.to(channels.teacher) for factor in self._changed(role, layer))
        weights = self._weights(role, layer) if self.maps.reads == "weights" else None
        if layer is not None:
            return Matrix(b, a, channels, self._side(role, layer, rows, outputs=True), weights)
        vocabulary = Tokens(self.tokens.to(b.device))
        if role == "head":
            return Matrix(b, a, channels, vocabulary, weights)
        looked_up = weights and (weights[0].t(), weights[1].t())  # an embedding is read by row: it writes what A has
        return Matrix(a.t(), b.t(), vocabulary, channels, looked_up)

    def _weights(self, role: str, layer: int | None) -> tuple[Tensor, Tensor]:
        at = None if layer is None else self.layers[layer]
        theirs, own = self.theirs.weight(role, at), self.own.weight(role, layer)
        if layer is None:  # the tokens that both have
            both = self.tokens >= 0
            theirs, own = theirs[self.tokens[both]], own[both]
        return theirs.to(device()).float(), own.to(device()).float()

    def _side(self, role: str, layer: int | None, axis: str, outputs: bool = False) -> Side:
        at = None if layer is None else self.layers[layer]
        if outputs and axis == "ffn" and self.maps.neurons == "after":
            role, outputs = "down", False  # before it, 28,672 neurons are a linear function of 8,192 channels
        if outputs:
            assert layer is not None and at is not None
            found = self.theirs.outputs(role, at), self.own.outputs(role, layer)
        else:
            found = self.theirs.inputs(role, at), self.own.inputs(role, layer)
        theirs, own = (tensor.to(device()) for tensor in found)
        return Side(theirs, own if self.order is None else own[self.order], self.held, axis, layer)
