"""What one step takes on so many ranks: memory of the fullest, bytes sent, seconds. From sizes, without a weight.

Parameters are counted on the models' outlines (the meta device), so that biases, norms and tied matrices are exact.
Activations are counted tensor by tensor as these steps keep them; `python -m benchmarks plan` holds the sum against
measured peaks. Times are those of the matrix products at the stated FLOP/s, or of the gathers at the stated bandwidth,
whichever takes longer: attention's own products, loading and evaluation are left out, and every example is taken to
be as long as it may be.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from orchestrator.cluster.ranks import Placement
from orchestrator.cluster.sharding import GATHERED
from orchestrator.models.dtypes import dtype_of
from orchestrator.models.families import Geometry, ModelFamily, family, pairs
from orchestrator.models.loading import config_of, outline
from orchestrator.recipe import Recipe
from orchestrator.scale import Scale
from orchestrator.steps.finetune import TOKENS_AT_ONCE
from orchestrator.transfer.metrics import Magnitude, Wanda
from orchestrator.transfer.scores import SLAB

USABLE = 0.92  # of a device's memory: the rest is the driver's, the kernels' and fragments
GATHERS = 3  # of each parameter in a pass: forward, recomputed forward, backward
FLOAT32 = 8  # times slower than bfloat16, on tensor cores
KRYLOV = 5  # blocks of the factorisation's basis (transfer/lowrank.py)


@dataclass(frozen=True)
class Hardware:
    """What the work would run on. `gpus` None: as few as it takes."""

    gpus: int | None = None
    memory: float = 80e9  # bytes of each
    flops: float = 400e12  # a second, achieved in bfloat16: 40 % of an H100's peak
    bandwidth: float = 100e9  # bytes a second that each rank receives
    tokens: int = Placement.tokens
    native: bool = True  # fast in bfloat16
    cuda: bool = True  # a GPU recomputes activations even where it is alone
    offload: bool = False  # the ranks' shards wait elsewhere


@dataclass(frozen=True)
class PerRank:
    """Bytes on the fullest rank."""

    weights_bytes: int = 0
    activations_bytes: int = 0
    statistics_bytes: int = 0
    factors_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """All at once: no part waits for another to go."""
        return self.weights_bytes + self.activations_bytes + self.statistics_bytes + self.factors_bytes


@dataclass(frozen=True)
class Cost:
    """One step on so many ranks. `network_bytes` are those that all ranks together receive."""

    ranks: int
    per_rank: PerRank
    network_bytes: int
    seconds: float
    memory: float
    smallest_cluster: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the peak leaves what a device needs for itself."""
        return self.per_rank.peak_bytes <= USABLE * self.memory

    @property
    def gpu_hours(self) -> float:
        """Of all ranks together."""
        return self.ranks * self.seconds / 3600

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        memory = asdict(self.per_rank) | {"peak_bytes": self.per_rank.peak_bytes}
        found = {name: getattr(self, name) for name in ("network_bytes", "seconds", "gpu_hours", "smallest_cluster")}
        return {"fits": self.fits, "ranks": self.ranks, "per_rank": memory, **found}


@dataclass(frozen=True)
class Anatomy:
    """A model as its config tells it."""

    name: str
    geometry: Geometry
    shapes: dict[str, torch.Size]  # of every parameter
    width: int  # bytes of one
    eager: bool  # attention keeps its probabilities, for want of a fused form
    family: ModelFamily

    @classmethod
    def of(cls, name: str, field: str, dtype: str = "auto", *, native: bool = True) -> Anatomy:
        """Where bfloat16 is `native` to the machine or isn't. UserError for a name whose config can't be had."""
        config = config_of(name, field)
        model = outline(config)
        shapes = {key: parameter.shape for key, parameter in model.named_parameters()}
        eager = model.config._attn_implementation == "eager"
        width = dtype_of(config, dtype, native=native).itemsize
        return cls(name, Geometry.of(config), shapes, width, eager, family(config.model_type))

    @cached_property
    def parameters(self) -> int:
        """All of them, tied ones once."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def multiplied(self) -> int:
        """Parameters that each token is multiplied by: all but a looked-up embedding."""
        tables = sum(shape[0] == self.geometry.vocab for shape in self.shapes.values())
        return self.parameters - (tables - 1) * self.geometry.vocab * self.geometry.hidden  # a tied one is the head

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """Every parameter's shape; a vector counts as one row."""
        return [(shape[0], shape[1]) if len(shape) == 2 else (1, shape[0]) for shape in self.shapes.values()]

    def pass_bytes(self, tokens: int, length: int, *, recompute: bool, backward: bool = True) -> int:
        """Activations of a pass over `tokens` in examples of `length`, at its fullest moment.

        That is either at the loss, with the logits in float32 three times over, or in the backward pass of the last
        layer, with the gradients of its widest part and what a score is made of in float32.
        """
        g, b = self.geometry, self.width
        head = 3 * 4 * tokens * g.vocab if backward else (b + 8) * tokens * g.vocab
        if not backward:
            return head + tokens * g.hidden * b
        query, key = g.size("query"), g.size("key")
        attention = 3 * query + 2 * key + (2 * query if key < query else 0)  # q, k, v, repeated, and the output twice
        if self.eager:
            attention += 3 * g.heads * length
        layer = tokens * b * (4 * g.hidden + attention + (4 if g.gated else 2) * g.ffn)
        gradients = tokens * (b * (3 * g.ffn + g.hidden) + (0 if b == 4 else 4 * (g.ffn + g.hidden)))
        if recompute:
            return g.layers * tokens * g.hidden * b + max(head, layer + gradients)
        return g.layers * layer + max(head, gradients)


def measure_cost(teacher: Anatomy, recipe: Recipe, scale: Scale, ranks: int, hardware: Hardware) -> Cost:
    """The teacher's pass, or both passes where exact windows take two: shards, one micro-batch, statistics."""
    part, size = recipe.measure, teacher.parameters * teacher.width
    each = sum(-(-n // scale.granularity) * -(-m // scale.granularity) + n + m for n, m in teacher.matrices)
    statistics = 4 * each
    if isinstance(part.metric, Magnitude):
        largest = max(n * m for n, m in teacher.matrices) * (teacher.width + 4)
        return Cost(1, PerRank(largest, 0, statistics), 0, 0.0, hardware.memory)
    recompute = hardware.cuda or ranks > 1
    points, forward = len(part.metric.points()), isinstance(part.metric, Wanda)
    batch = max(1, min(hardware.tokens // points // part.max_tokens, -(-part.examples // ranks)))
    rounds = math.ceil(part.examples / batch / ranks)
    tokens = batch * points * part.max_tokens
    weights = 0 if hardware.offload and hardware.cuda else size // ranks
    if ranks > 1 or hardware.offload:
        weights += min(teacher.parameters, GATHERED + max(n * m for n, m in teacher.matrices)) * teacher.width
    activations = teacher.pass_bytes(tokens, part.max_tokens, recompute=recompute, backward=not forward)
    passes = 2 if scale.exact and not forward else 1
    gathered = rounds * (1 if forward else GATHERS) * size * (ranks - 1) // ranks
    flops = rounds * tokens * teacher.multiplied * (2 if forward else 8 if recompute else 6)
    seconds = passes * max(flops / hardware.flops, gathered / hardware.bandwidth)
    network = ranks * passes * gathered + statistics * (ranks - 1)
    return Cost(ranks, PerRank(weights, activations, statistics), network, seconds, hardware.memory)


def extract_cost(
    teacher: Anatomy, student: Anatomy, recipe: Recipe, scale: Scale, ranks: int, hardware: Hardware
) -> Cost:
    """Blocks and factors, a matrix at a time: no rank holds more of the teacher than one."""
    single = scale.exact or scale.granularity == 1
    rank, tokens, fullest, flops = recipe.stored_rank, recipe.measure.examples * recipe.measure.max_tokens, PerRank(), 0
    width = rank + rank // 2 + 8
    for pair in pairs(teacher.geometry, student.geometry, recipe.modules or ()):
        (n, m), (height, breadth) = pair.teacher, pair.student
        scored = 1 if single and pair.layer is not None else scale.granularity**2
        sliding = 3 * 8 * SLAB
        recorded = teacher.width * (tokens // recipe.measure.examples) * (n + m) if scale.exact else 0
        here = PerRank(
            n * m * teacher.width + 4 * height * breadth,
            sliding + recorded,
            4 * n * m // scored,
            4 * (height + breadth) * (width * (KRYLOV + 1) + rank),
        )
        fullest = max(fullest, here, key=lambda need: need.peak_bytes)
        flops += FLOAT32 * 2 * height * breadth * width * 3 * KRYLOV + (2 * n * m * tokens if scale.exact else 0)
    return Cost(ranks, fullest, 0, flops / ranks / hardware.flops, hardware.memory)


def recorded_bytes(teacher: Anatomy, student: Anatomy, recipe: Recipe) -> int:
    """The second pass's: each token's input and output gradient of every matrix of the kept layers, once."""
    if isinstance(recipe.measure.metric, Magnitude | Wanda):
        return 0
    roles = [
        role for origin in recipe.modules or () if origin != "embedding" for role in student.geometry.roles(origin)
    ]
    values = sum(sum(teacher.geometry.shape(role)) for role in roles) * student.geometry.layers
    return values * teacher.width * recipe.measure.examples * recipe.measure.max_tokens


def finetune_cost(student: Anatomy, recipe: Recipe, rank: int, hardware: Hardware) -> Cost:
    """One trial on one device: the frozen student, an adapter of rank 2r with AdamW's moments, every activation."""
    part = recipe.finetune
    at_once = part.micro_batch_size or max(1, min(part.batch_size, TOKENS_AT_ONCE // part.max_tokens))
    tokens = at_once * part.max_tokens
    adapted = [(n, m) for n, m in student.matrices if n > 1 and m > 1]
    adapter = 16 * sum(2 * rank * (n + m) for n, m in adapted)  # float32: itself, its gradient, two moments
    dropped = tokens * sum(9 * m + 8 * rank for _, m in adapted if m != student.geometry.vocab)
    activations = student.pass_bytes(tokens, part.max_tokens, recompute=False) + dropped
    seconds = 4 * student.multiplied * part.examples * part.max_tokens * part.epochs / hardware.flops
    need = PerRank(student.parameters * student.width, activations, 0, adapter)
    return Cost(1, need, 0, seconds, hardware.memory)
