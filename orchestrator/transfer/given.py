"""Indices that the caller knows: for pairs whose bases are known to agree, and for what another tool has aligned.

    Given(residual=(5, 2), heads=(3,), groups=(1,), neurons=(0, 7, 4))     # the student's unit k is the k-th named

Every other structure guesses which of the teacher's units play the student's. Where they are known, whatever goes
wrong afterwards is not the guess's fault (experiments/known_answer).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from orchestrator.transfer.consistent import Consistently, Key, key_of
from orchestrator.transfer.place import Structure, head_dims

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from orchestrator.transfer.place import Sums

UNITS = {  # by axis: the field that names its units, and what they are called
    "residual": ("residual", "residual dimensions"),
    "query": ("heads", "attention heads"),
    "key": ("groups", "K/V heads"),
    "ffn": ("neurons", "feed-forward neurons"),
}


class Given(Structure):
    """The teacher's residual dimensions, heads, K/V heads and neurons as listed, the same in every layer.

    Lists are not sorted, and scores play no part. A list whose matrices are not cut may be left out. Of larger heads
    the same dimensions each are taken (`head_dims`). That query heads read their own K/V heads is for
    the caller to see to.
    """

    kind: Literal["given"] = "given"
    residual: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()

    def units(self, axis: str, teacher: int, student: int) -> tuple[int, ...]:
        """What is named for an axis; ValueError for more or fewer than the student's, or one that isn't there."""
        field, called = UNITS[axis]
        named: tuple[int, ...] = getattr(self, field)
        if len(named) != student:
            raise ValueError(f"structure.{field}: {len(named)} {called} given, and the student has {student}")
        if beyond := [unit for unit in named if not 0 <= unit < teacher]:
            raise ValueError(f"structure.{field}: {beyond[0]} given, and the teacher's {called} are 0..{teacher - 1}")
        return named

    def prepared(self, matrices: Iterable[Sums]) -> Consistently:
        """The choice, once it is known how many units each axis has."""
        import torch

        chosen: dict[Key, Int[Tensor, " n"]] = {}
        for place, *sides in matrices:
            for axis, size, side in zip(place.axes, place.shape, sides, strict=True):
                if axis in UNITS:
                    theirs, own = place.heads if axis in ("query", "key") else (1, 1)
                    units = torch.tensor(self.units(axis, len(side) // theirs, size // own))
                    chosen[key_of(axis, place)] = (units[:, None] * theirs + head_dims(theirs, own)).flatten()
        return Consistently(chosen)
