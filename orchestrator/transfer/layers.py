"""Which teacher layer feeds which student layer.

    parse("sensitivity").select([3.0, 9.0, 1.0, 8.0], 2)    # (1, 3): the best two, in the teacher's order

A student with L_s layers needs L_s of the teacher's L_t; the k-th kept layer feeds student layer k (Seeking Neural
Nuggets, arXiv 2310.11451, section 3). A strategy is its own configuration.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sensitivity(_Frozen):
    """The layers with the largest total sensitivity, in their original order: the paper's own choice."""

    kind: Literal["sensitivity"] = "sensitivity"

    def select(self, scores: Sequence[float], count: int) -> tuple[int, ...]:
        """`count` layers out of len(scores); the earlier layer wins a tie."""
        best = sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))[:count]
        return tuple(sorted(best))


class Random(_Frozen):
    """Layers drawn uniformly: what a choice that knows nothing reaches.

    One draw per `seed`, not per trial, so that trials can share one extraction; sweep over several seeds, as
    {"kind": "random", "seed": 1}, to say something about random choice and not about one draw.
    """

    kind: Literal["random"] = "random"
    seed: int = 0

    def select(self, scores: Sequence[float], count: int) -> tuple[int, ...]:
        """`count` layers out of len(scores), in their original order."""
        return tuple(sorted(random.Random(self.seed).sample(range(len(scores)), count)))


class First(_Frozen):
    """The layers next to the embedding: our reading of the paper's "Top", which its text doesn't define."""

    kind: Literal["first"] = "first"

    def select(self, scores: Sequence[float], count: int) -> tuple[int, ...]:
        """The first `count` layers."""
        return tuple(range(count))


class Last(_Frozen):
    """The layers next to the head."""

    kind: Literal["last"] = "last"

    def select(self, scores: Sequence[float], count: int) -> tuple[int, ...]:
        """The last `count` layers."""
        return tuple(range(len(scores) - count, len(scores)))


class Uniform(_Frozen):
    """Evenly spaced layers, both ends kept: depth matched to depth, as in common layer-dropping distillation."""

    kind: Literal["uniform"] = "uniform"

    def select(self, scores: Sequence[float], count: int) -> tuple[int, ...]:
        """Layers at equal distances, rounded to the nearest; a single one is the middle layer."""
        if count == 1:
            return (len(scores) // 2,)
        step = (len(scores) - 1) / (count - 1)
        return tuple(int(i * step + 0.5) for i in range(count))


class Explicit(_Frozen):
    """Layers named by the user, in the order given: `--layers 0,2,5`."""

    kind: Literal["explicit"] = "explicit"
    layers: tuple[int, ...] = Field(min_length=1)

    def select(self, scores: Sequence[float], count: int) -> tuple[int, ...]:
        """The named layers; ValueError where there are not `count` of them or the teacher lacks one."""
        if len(self.layers) != count or not all(0 <= layer < len(scores) for layer in self.layers):
            named = ",".join(map(str, self.layers))
            raise ValueError(f"layers: {named} given, but {count} of the teacher's 0..{len(scores) - 1} are needed")
        return self.layers


def from_text(value: Any) -> Any:
    """A bare name stands for its strategy with its defaults, and a list of numbers for an explicit choice."""
    if isinstance(value, int):
        return {"kind": "explicit", "layers": [value]}
    if isinstance(value, str) and value.replace(",", "").replace(" ", "").isdigit():
        return {"kind": "explicit", "layers": [int(layer) for layer in value.split(",") if layer.strip()]}
    return {"kind": value} if isinstance(value, str) else value


LayerSelection = Annotated[
    Annotated[Sensitivity | Random | First | Last | Uniform | Explicit, Field(discriminator="kind")],
    BeforeValidator(from_text),
]
