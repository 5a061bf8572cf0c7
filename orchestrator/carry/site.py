"""Where an update is carried over: both models, what each had at the drawn tokens, and the maps between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from orchestrator.carry.inputs import OUTER, SITES, file_for
from orchestrator.carry.pairs import USES, read_pairs
from orchestrator.models import adapters
from orchestrator.models.families import AXES, FAMILIES, ORIGINS, Geometry, ModelFamily
from orchestrator.models.loading import Weights, read_config, tokens_of
from orchestrator.teacher.teacher_pass import device
from orchestrator.transfer.arms.carried import Carried, CarriedWeights
from orchestrator.transfer.arms.twosided import TwoSided
from orchestrator.transfer.lowrank import truncated_svd
from orchestrator.transfer.sides import Matrix, Side, Tokens, norm_of

SIDES = 3  # that a layer's matrices have in common with the next: 0.4 GB each between 70B and 7B, and 0.7 of maps
Part = tuple[str, int | None]  # a role and the student's layer
Sources = Sequence[tuple[int, float]]  # the teacher's layers for one of the student's, each with its share


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

    def last_norm(self) -> tuple[Tensor, Tensor]:
        """What the norm before the head multiplies by, and what it adds: of all norms the one outside of layers."""
        layers = self.family.layer.split("{}")[0]
        (name,) = (
            name for name in self.weights.names() if name.endswith("norm.weight") and not name.startswith(layers)
        )
        weight, bias = self.weights.get(name), name.removesuffix("weight") + "bias"
        return weight + self.family.norm_offset, self.weights.get(bias) if bias in self.weights else 0 * weight

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
    changed: dict[str, adapters.Start]  # the teacher's update; none where its weights themselves are moved
    method: Carried
    maps: TwoSided  # the method's own, or what stands in for them
    layers: Sequence[Sources]
    tokens: Tensor
    held: int
    order: Tensor | None  # of the student's tokens, where it isn't the teacher's
    sides: dict[Any, Side] = field(default_factory=dict)  # the last few that were looked at

    @classmethod
    def open(
        cls, teacher: str, student: str, changed: dict[str, adapters.Start], method: Carried, layers: Sequence[Sources],
        found: Sequence[Path | None] = (None, None, None), shuffled: bool = False, maps: TwoSided | None = None,
    ) -> Site:  # fmt: skip
        """`found`: the pairs and what each model had at them, where maps are made of that."""
        pairs, *seen = found
        theirs, own = (Model.open(name, at) for name, at in zip((teacher, student), seen, strict=True))
        counts = [sum(map(len, read_pairs(pairs)[use].values())) for use in USES] if pairs else [0, 0]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)) if shuffled else None
        tokens = tokens_of(Path(teacher), Path(student))
        return cls(theirs, own, changed, method, maps or method, layers, tokens, counts[1], order)

    def parts(self) -> dict[str, list[Part]]:
        """By the student's module its roles and layers of which anything of the teacher's is moved."""
        found: dict[str, list[Part]] = {}
        for role, layer in self.own.geometry.matrices():
            if any(self._moves(role, at) for at, _ in self._sources(layer)):
                found.setdefault(self.own.family.module(role, layer), []).append((role, layer))
        return found

    def _sources(self, layer: int | None) -> Sequence[tuple[int | None, float]]:
        return [(None, 1.0)] if layer is None else self.layers[layer]

    def _moves(self, role: str, at: int | None) -> bool:
        if role not in self.theirs.family.roles | self.theirs.family.outer:
            return False  # a gate that the teacher lacks
        if isinstance(self.method, CarriedWeights):
            return any(role in ORIGINS[origin] for origin in self.method.origins())
        return self.theirs.family.module(role, at) in self.changed

    def together(self, modules: list[list[Part]]) -> list[tuple[adapters.Start, dict[str, float]]]:
        """Several modules' updates."""
        return [self.carried(parts) for parts in modules]

    def carried(self, parts: list[Part]) -> tuple[adapters.Start, dict[str, float]]:
        """One module's update: of roles that share it each one's, one below the other."""
        made = [self._moved(role, layer) for role, layer in parts]
        (b, a), facts = made[0]
        if parts[0][0] == "embed":
            b, a = a.t(), b.t()
        if len(self.own.family.sharers(parts[0][0])) > 1:
            b, a = self._stacked(parts, [start for start, _ in made])
            facts = {key: sum(one[key] for _, one in made) / len(made) for key in facts}
        theirs = math.hypot(*(facts["norm"] for _, facts in made))
        facts["norm"], facts["arrived"] = theirs, norm_of(b, a) / theirs if theirs else math.nan
        return (b.float().cpu().contiguous(), a.float().cpu().contiguous()), facts

    def _moved(self, role: str, layer: int | None) -> tuple[adapters.Start, dict[str, float]]:
        """One matrix's, from all of the layers that it takes something of; `norm` is that of what was to arrive."""
        sources = [(at, share) for at, share in self._sources(layer) if self._moves(role, at)]
        if isinstance(self.method, CarriedWeights):
            return self._merged(role, layer, sources, self.method.kept)
        made = [(share, *self.maps.carry(self._matrix(role, layer, at))) for at, share in sources]
        facts = {key: sum(share * facts[key] for share, _, facts in made) for key in made[0][2]}
        facts["norm"] = sum(share * norm_of(*self._changed(role, at)) for at, share in sources)
        if len(made) == 1 and made[0][0] == 1:
            return made[0][1], facts
        return (torch.cat([share * b for share, (b, _), _ in made], 1), torch.cat([a for _, (_, a), _ in made])), facts

    def _merged(
        self, role: str, layer: int | None, sources: Sequence[tuple[int | None, float]], kept: int
    ) -> tuple[adapters.Start, dict[str, float]]:
        """The strongest directions of what the teacher's weights have that the student's lack."""
        assert layer is not None
        rows, columns = AXES[role]
        whole = -self.own.weight(role, layer).to(device()).float()
        for at, share in sources:
            read = self.maps.read(
                self.theirs.weight(role, at).to(device()).float(), self._side(role, layer, at, columns)
            )
            whole += share * self.maps.written(read.t(), self._side(role, layer, at, rows, outputs=True)).t()
        factors = truncated_svd(whole, min(kept, *whole.shape))
        return (factors.u * factors.s, factors.vh), {"norm": float(whole.norm())}

    def _changed(self, role: str, at: int | None) -> adapters.Start:
        """The teacher's update of a role's own rows."""
        b, a = self.changed[self.theirs.family.module(role, at)]
        return (b if at is None else b[self.theirs.family.rows(role, self.theirs.geometry)]), a

    def _stacked(self, parts: list[Part], made: list[adapters.Start]) -> adapters.Start:
        family, geometry = self.own.family, self.own.geometry
        rows = sum(geometry.shape(role)[0] for role in family.sharers(parts[0][0]))
        b = torch.zeros(rows, sum(start[0].shape[1] for start in made))
        at = 0
        for (role, _), (up, _) in zip(parts, made, strict=True):
            b[family.rows(role, geometry), at : at + up.shape[1]] = up.cpu().float()
            at += up.shape[1]
        return b, torch.cat([down.cpu().float() for _, down in made])

    def _matrix(self, role: str, layer: int | None, at: int | None) -> Matrix:
        rows, columns = AXES[role]
        channels = self._side(role, layer, at, columns)
        b, a = (factor.to(channels.teacher) for factor in self._changed(role, at))
        weights = self._weights(role, layer, at) if self.maps.reads == "weights" else None
        if layer is not None:
            return Matrix(b, a, channels, self._side(role, layer, at, rows, outputs=True), weights)
        vocabulary = Tokens(self.tokens.to(b.device))
        if role == "head":
            return Matrix(b, a, channels, vocabulary, weights)
        looked_up = weights and (weights[0].t(), weights[1].t())  # an embedding is read by row: it writes what A has
        return Matrix(a.t(), b.t(), vocabulary, channels, looked_up)

    def _weights(self, role: str, layer: int | None, at: int | None) -> tuple[Tensor, Tensor]:
        theirs, own = self.theirs.weight(role, at), self.own.weight(role, layer)
        if layer is None:  # the tokens that both have
            both = self.tokens >= 0
            theirs, own = theirs[self.tokens[both]], own[both]
        return theirs.to(device()).float(), own.to(device()).float()

    def _side(self, role: str, layer: int | None, at: int | None, axis: str, outputs: bool = False) -> Side:
        """Kept while a layer's other matrices may want it."""
        if outputs and axis == "ffn" and self.maps.neurons == "after":
            role, outputs = "down", False  # before it, 28,672 neurons are a linear function of 8,192 channels
        if outputs and axis == "residual" and self.method.writes == "next":
            role, layer, at = self._next(role, layer, at)
            outputs = False
        key = (role if outputs or layer is None else SITES[role], outputs, layer, at)
        side = self.sides.pop(key, None) or self._read(role, layer, at, axis, outputs)
        self.sides[key] = side  # as the newest
        if len(self.sides) > SIDES:
            del self.sides[next(iter(self.sides))]
        return side

    def _next(self, role: str, layer: int | None, at: int | None) -> tuple[str, int | None, int | None]:
        """What reads the stream after this matrix, and from which of the teacher's layers that is carried."""
        assert layer is not None
        if role == "o":
            return "up", layer, at
        if layer + 1 == self.own.geometry.layers:
            return "head", None, None
        return "q", layer + 1, max(self.layers[layer + 1], key=lambda source: source[1])[0]

    def _read(self, role: str, layer: int | None, at: int | None, axis: str, outputs: bool) -> Side:
        if outputs:
            assert layer is not None and at is not None
            found = self.theirs.outputs(role, at), self.own.outputs(role, layer)
        else:
            found = self.theirs.inputs(role, at), self.own.inputs(role, layer)
        theirs, own = (tensor.to(device()) for tensor in found)
        return Side(theirs, own if self.order is None else own[self.order], self.held, axis, layer)
