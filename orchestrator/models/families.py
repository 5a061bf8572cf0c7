"""What differs between model families, as rows of data.

    family("llama").parameter("q", 3)     # "model.layers.3.self_attn.q_proj.weight"

A family says under which name each role's matrix lives, and which of them share one matrix. Dimensions are never
written here: they come from the checkpoint's own config. A family with new names is a new row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UserError

ORIGINS: dict[str, tuple[str, ...]] = {  # the paper's "origin" axis: which matrices are extracted
    "attention": ("q", "k", "v", "o"),
    "ffn": ("gate", "up", "down"),
    "embedding": ("embed", "head"),
}

AXES: dict[str, tuple[str, str]] = {  # what the rows (outputs) and the columns (inputs) of a role's matrix count
    "q": ("query", "residual"),
    "k": ("key", "residual"),
    "v": ("key", "residual"),
    "o": ("residual", "query"),
    "gate": ("ffn", "residual"),
    "up": ("ffn", "residual"),
    "down": ("residual", "ffn"),
    "embed": ("vocabulary", "residual"),
    "head": ("vocabulary", "residual"),
}


LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
FUSED = LLAMA | dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj") | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")
NEOX = dict.fromkeys(("q", "k", "v"), "attention.query_key_value") | {
    "o": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}


NORMS = {"input_layernorm": "residual", "post_attention_layernorm": "residual"}
SANDWICH = NORMS | {"pre_feedforward_layernorm": "residual", "post_feedforward_layernorm": "residual"}
HEAD_NORMS = {"self_attn.q_norm": "head", "self_attn.k_norm": "head"}
OLMO = {
    "post_attention_layernorm": "residual",
    "post_feedforward_layernorm": "residual",
    "self_attn.q_norm": "query",
    "self_attn.k_norm": "key",
}
ATTENTION_BIAS = {"attention_bias": ORIGINS["attention"]}
ALWAYS = "model_type"  # a field that every config has


@dataclass(frozen=True)
class ModelFamily:
    """Role → module; `{}` stands for the layer. Roles with one module share its rows, in the order of `roles`."""

    model_type: str
    roles: dict[str, str] = field(default_factory=lambda: LLAMA)
    layer: str = "model.layers.{}."
    outer: dict[str, str] = field(default_factory=lambda: {"embed": "model.embed_tokens", "head": "lm_head"})
    norm_offset: float = 0.0  # what a norm adds to its weight before it multiplies
    stored: dict[str, str] = field(default_factory=dict)  # parameters that a checkpoint calls otherwise
    by_head: bool = False  # fused rows: the first head's q, k and v, then the second's; or all of q, then all of k
    norms: dict[str, str] = field(default_factory=lambda: NORMS)  # a layer's, and along which axis each lies
    biases: dict[str, tuple[str, ...]] = field(default_factory=dict)  # roles that have one, by the config's field
    centred: bool = False  # norms are LayerNorms, which have biases, too
    eager: bool = False  # attention keeps its probabilities, for want of a fused form

    def module(self, role: str, layer: int | None) -> str:
        """The name of the module that holds this role's matrix; `layer` is None for embedding and head."""
        if layer is None:
            return self.outer[role]
        return self.layer.format(layer) + self.roles[role]

    def block(self, layer: int) -> str:
        """The name of the module that is a whole layer."""
        return self.layer.format(layer).removesuffix(".")

    def parameter(self, role: str, layer: int | None) -> str:
        """The name of this role's matrix in the checkpoint."""
        return self.module(role, layer) + ".weight"

    def template(self, role: str) -> str:
        """The name of a role's matrix in any layer, with `{}` for the layer."""
        return self.layer + self.roles[role] + ".weight"

    def sharers(self, role: str) -> tuple[str, ...]:
        """The roles whose rows are in the same matrix, in their order; this one alone where it has its own."""
        if role in self.outer:
            return (role,)
        return tuple(other for other, module in self.roles.items() if module == self.roles[role])

    @property
    def fused(self) -> bool:
        """Whether some roles share a matrix."""
        return len(set(self.roles.values())) < len(self.roles)

    def rows(self, role: str, geometry: Geometry, granularity: int = 1) -> slice | NDArray[np.int64]:
        """Where a role's rows are in the matrix that holds it, or its rows of tiles."""
        sharers = self.sharers(role)
        sizes = [-(-geometry.shape(other)[0] // granularity) for other in sharers]
        place = sharers.index(role)
        if self.by_head and len(sharers) > 1:
            return np.arange(sum(sizes)).reshape(geometry.heads, len(sharers), -1)[:, place].ravel()
        return slice(sum(sizes[:place]), sum(sizes[: place + 1]))

    def shapes(self, geometry: Geometry, config: Any) -> list[tuple[int, ...]]:
        """Every parameter's; tied ones once. What differs between two models of one size is in their configs."""
        biased = {role for name, roles in self.biases.items() if getattr(config, name, False) for role in roles}
        modules: dict[str, tuple[int, int, bool]] = {}
        for role, module in self.roles.items():
            (n, m), (before, *_) = geometry.shape(role), modules.get(module, (0,))
            modules[module] = before + n, m, role in biased
        layer: list[tuple[int, ...]] = [(n, m) for n, m, _ in modules.values()]
        layer += [(n,) for n, _, has_bias in modules.values() if has_bias]
        norms: list[tuple[int, ...]] = [(geometry.size(axis),) for axis in self.norms.values()]
        last: list[tuple[int, ...]] = [(geometry.hidden,)]
        tables = 1 if getattr(config, "tie_word_embeddings", False) else 2
        return (
            geometry.layers * (layer + norms * (1 + self.centred))
            + last * (1 + self.centred)
            + tables * [geometry.shape("embed")]
        )

    @property
    def targets(self) -> list[str]:
        """The last parts of all adapted modules' names, as PEFT's target_modules wants them."""
        return sorted({name.rsplit(".", 1)[-1] for name in (*self.roles.values(), *self.outer.values())})


FAMILIES = {
    row.model_type: row
    for row in (
        ModelFamily("llama", biases=ATTENTION_BIAS | {"mlp_bias": ORIGINS["ffn"]}),
        ModelFamily("mistral"),
        ModelFamily("qwen2", biases={ALWAYS: ("q", "k", "v")}),
        ModelFamily("qwen3", norms=NORMS | HEAD_NORMS, biases=ATTENTION_BIAS),
        ModelFamily("olmo2", norms=OLMO, biases=ATTENTION_BIAS),
        ModelFamily("gemma2", norm_offset=1.0, norms=SANDWICH, biases=ATTENTION_BIAS, eager=True),
        ModelFamily("gemma3_text", norm_offset=1.0, norms=SANDWICH | HEAD_NORMS, biases=ATTENTION_BIAS),
        ModelFamily("phi3", FUSED),
        ModelFamily(
            "gpt_neox",
            NEOX,
            layer="gpt_neox.layers.{}.",
            outer={"embed": "gpt_neox.embed_in", "head": "lm_head"},
            by_head=True,
            stored={"lm_head.weight": "embed_out.weight"},
            biases=ATTENTION_BIAS | {ALWAYS: ORIGINS["ffn"]},
            centred=True,
        ),
    )
}


def family(model_type: str) -> ModelFamily:
    """The row of a config's `model_type`. UserError with the known ones for any other."""
    if model_type not in FAMILIES:
        raise UserError(f"model: family {model_type!r} is not known; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


@dataclass(frozen=True)
class Geometry:
    """The sizes that decide what can be cut from what, read from a config."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True  # whether the feed-forward has a gate

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """From a transformers config; head_dim is its own field where a family decouples it."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab=config.vocab_size,
            gated="gate" in family(config.model_type).roles,
        )

    def size(self, axis: str) -> int:
        """How long an axis of a matrix is, by what it counts (see `AXES`)."""
        return {
            "residual": self.hidden,
            "query": self.heads * self.head_dim,
            "key": self.kv_heads * self.head_dim,
            "head": self.head_dim,
            "ffn": self.ffn,
            "vocabulary": self.vocab,
        }[axis]

    def shape(self, role: str) -> tuple[int, int]:
        """Rows (outputs) and columns (inputs) of a role's matrix."""
        rows, columns = AXES[role]
        return self.size(rows), self.size(columns)

    @property
    def weights(self) -> int:
        """Of all matrices but the embedding, in which a row is looked up: what a token is multiplied with."""
        return sum(math.prod(self.shape(role)) for role, _ in self.matrices() if role != "embed")

    def matrices(self, origins: Iterable[str] = tuple(ORIGINS)) -> Iterator[tuple[str, int | None]]:
        """Role and layer of each matrix, role by role; embedding and head have no layer."""
        for origin in origins:
            for role in self.roles(origin):
                for layer in [None] if origin == "embedding" else range(self.layers):
                    yield role, layer

    def roles(self, origin: str) -> tuple[str, ...]:
        """An origin's matrices, as far as the model has them."""
        return tuple(role for role in ORIGINS[origin] if role != "gate" or self.gated)


@dataclass(frozen=True)
class Pair:
    """One matrix of the student and the teacher's that it is cut from."""

    role: str
    layer: int | None  # the student's
    student: tuple[int, int]
    teacher: tuple[int, int]  # after K/V heads were repeated
    repeats: int = 1


def pairs(teacher: Geometry, student: Geometry, origins: tuple[str, ...]) -> Iterator[Pair]:
    """Every matrix to extract, with both shapes. UserError for the first that is larger in the student.

    Where a teacher with grouped queries has fewer K/V rows than the student needs, each of its K/V heads is repeated
    for its group, which is what attention does with it, and the block is cut from that. Embedding and head keep the
    whole vocabulary and give up hidden dimensions only.
    """
    if faults := too_small(teacher, student, origins):
        raise UserError(f"{faults[0]}; take another --teacher, or leave such matrices out with --modules")
    for role, layer in student.matrices(origins):
        have, repeats = _source(teacher, student, role)
        yield Pair(role, layer, student.shape(role), have, repeats)


def too_small(teacher: Geometry, student: Geometry, origins: tuple[str, ...]) -> list[str]:
    """What can't be cut: each matrix that the teacher lacks or has in a smaller size, with both shapes."""
    faults = []
    if student.layers > teacher.layers:
        faults.append(f"student: {student.layers} layers, the teacher has only {teacher.layers}")
    for role in (role for origin in origins for role in student.roles(origin)):
        want, (have, _) = student.shape(role), _source(teacher, student, role)
        if role == "gate" and not teacher.gated:
            faults.append("teacher: it has no gate matrix, which the student's would be cut from")
        elif have[0] < want[0] or have[1] < want[1]:
            faults.append(
                f"teacher: its {role} matrix is {have[0]} x {have[1]}, smaller than the student's {want[0]} x {want[1]}"
            )
    return faults


def _source(teacher: Geometry, student: Geometry, role: str) -> tuple[tuple[int, int], int]:
    """The shape to cut from, and how often the teacher's K/V heads are repeated in it."""
    want, have = student.shape(role), teacher.shape(role)
    if role in ("k", "v") and have[0] < want[0]:
        repeats = teacher.heads // teacher.kv_heads
        return (have[0] * repeats, have[1]), repeats
    if role in ORIGINS["embedding"]:
        return (want[0], have[1]), 1  # rows are matched by token
    return have, 1
