"""A model as its config tells it: every parameter's shape, and what a pass through it keeps in memory.

Parameters are counted by the family's row: biases, norms and tied matrices are exact, and nothing is imported for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import SimpleNamespace
from typing import Any

from orchestrator.models.aliases import ALIASES
from orchestrator.models.dtypes import WIDTHS, dtype_name
from orchestrator.models.families import Geometry, ModelFamily, family


@dataclass(frozen=True)
class Anatomy:
    """A model as its config tells it."""

    name: str
    geometry: Geometry
    shapes: list[tuple[int, ...]]  # of every parameter
    width: int  # bytes of one
    family: ModelFamily

    @classmethod
    def of(cls, name: str, field: str, dtype: str = "auto", *, native: bool = True) -> Anatomy:
        """Where bfloat16 is `native` to the machine or isn't. UserError for a name whose config can't be had."""
        config = _config(name, field)
        row, geometry = family(config.model_type), Geometry.of(config)
        width = WIDTHS[dtype_name(config, dtype, native=native)]
        return cls(name, geometry, row.shapes(geometry, config), width, row)

    @cached_property
    def parameters(self) -> int:
        """All of them, tied ones once."""
        return sum(map(prod, self.shapes))

    @property
    def multiplied(self) -> int:
        """Parameters that each token is multiplied by: all but a looked-up embedding."""
        tables = sum(shape[0] == self.geometry.vocab for shape in self.shapes)
        return self.parameters - (tables - 1) * self.geometry.vocab * self.geometry.hidden  # a tied one is the head

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """Every parameter's shape; a vector counts as one row."""
        return [(shape[0], shape[1]) if len(shape) == 2 else (1, shape[0]) for shape in self.shapes]

    def pass_bytes(self, tokens: int, length: int, kept: int, *, recompute: bool, backward: bool = True) -> int:
        """Activations of a pass over `tokens` in examples of `length`, at its fullest moment.

        That is either at the loss, with the logits of `kept` tokens in float32 three times over, or in the backward
        pass of the last layer, with the gradients of its widest part and what a score is made of in float32.
        """
        g, b = self.geometry, self.width
        head = 3 * 4 * kept * g.vocab
        if not backward:
            return self.forward_bytes(tokens, kept * g.vocab * (b + 8))
        query, key = g.size("query"), g.size("key")
        attention = 3 * query + 2 * key + (2 * query if key < query else 0)  # q, k, v, repeated, and the output twice
        if self.family.eager:
            attention += 3 * g.heads * length
        layer = tokens * b * (4 * g.hidden + attention + (4 if g.gated else 2) * g.ffn)
        gradients = tokens * (b * (3 * g.ffn + g.hidden) + (0 if b == 4 else 4 * (g.ffn + g.hidden)))
        if recompute:
            return g.layers * tokens * g.hidden * b + max(head, layer + gradients)
        return g.layers * layer + max(head, gradients)

    def forward_bytes(self, tokens: int, logits: int) -> int:
        """Activations where nothing is kept for a backward pass: those of one layer's widest part, or the logits."""
        g, b = self.geometry, self.width
        return tokens * g.hidden * b + max(tokens * b * ((3 if g.gated else 2) * g.ffn + 2 * g.hidden), logits)


def _config(name: str, field: str) -> Any:
    """The alias's published one; a folder's or a hub's as transformers reads it, which fills in what it leaves out."""
    if (alias := ALIASES.get(name)) and alias.config:
        return SimpleNamespace(**alias.config)
    from orchestrator.models.loading import config_of

    return config_of(name, field)
