"""One choice for the whole model: what a matrix writes into the residual stream, the next one reads at the same place.

The paper's windows are chosen matrix by matrix, so that dimension 7 of the student's stream may be dimension 40 of
the teacher's in one matrix and 300 in the next, and the blocks no longer compute what they did together. Here one set
of residual indices serves every matrix of every layer, and in each layer attention heads and feed-forward neurons are
taken whole: the blocks are a smaller network cut out of the larger one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.transfer.place import Block, Place, Structure, enough_heads, head_dims, top

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from orchestrator.transfer.place import Sums
    from orchestrator.transfer.scores import Scores

Key = tuple[int | None, str]  # a student's layer and what is chosen in it; the residual stream is every layer's


class Consistent(Structure):
    """The residual dimensions, heads and neurons of highest summed S, the same in every matrix that has them.

    Row and column sums are all it needs, which are exact at every granularity.
    """

    kind: Literal["consistent"] = "consistent"
    drawn: int | None = None  # a random seed: they are drawn, and not those of highest S

    def prepared(self, matrices: Iterable[Sums]) -> Consistently:
        """The choice, from the sums of every matrix that will be cut."""
        scores: dict[Key, Tensor] = {}
        wanted: dict[Key, int] = {}
        theirs, own = 1, 1
        for place, *sides in matrices:
            for axis, size, side in zip(place.axes, place.shape, sides, strict=True):
                key = key_of(axis, place)
                scores[key] = scores[key] + side if key in scores else side.double()
                wanted[key] = size
            theirs, own = place.heads
        if self.drawn is not None:
            scores = {key: _random(total, f"{self.drawn} {key}") for key, total in scores.items()}
        chosen = {}
        for key, total in scores.items():
            layer, axis = key
            if axis in ("residual", "ffn"):
                chosen[key] = top(total, wanted[key])
            elif axis == "query":
                inside, names = head_dims(theirs, own), ("query", "key")
                query, shared = (scores[layer, name].view(-1, theirs)[:, inside].sum(1) for name in names)
                found = choose_heads(query, shared, *(wanted[layer, name] // own for name in names))
                for name, heads in zip(names, found, strict=True):
                    chosen[layer, name] = (heads[:, None] * theirs + inside).flatten()
        return Consistently(chosen)


def _random(like: Tensor, seed: str) -> Tensor:
    draw = random.Random(seed)  # a string's seed is the same on every machine
    return like.new_tensor([draw.random() for _ in range(len(like))])


@dataclass(frozen=True)
class Consistently:
    """The choice that `Consistent` made: indices by layer and axis."""

    chosen: dict[Key, Int[Tensor, " n"]]

    def select(self, scores: Scores, place: Place) -> Block:
        """One matrix's rows and columns; of an embedding all rows, which are tokens."""
        import torch

        rows, cols = (
            torch.arange(size) if axis == "vocabulary" else self.chosen[key_of(axis, place)]
            for axis, size in zip(place.axes, place.shape, strict=True)
        )
        return Block(place.shape, rows=rows, cols=cols)


def choose_heads(
    query: Float[Tensor, " heads"], key: Float[Tensor, " groups"], heads: int, groups: int
) -> tuple[Int[Tensor, " heads"], Int[Tensor, " groups"]]:
    """Query heads and K/V heads of a student, so that each query head still reads its own K/V head.

    Where the teacher's groups are enough and large enough, the best groups are taken and of each its best query
    heads. Where not, query heads are chosen freely, and each of the student's groups reads the K/V head that its best
    member read. ValueError where the teacher has fewer query heads than the student.
    """
    import torch

    enough_heads(len(query), heads)
    theirs, own = len(query) // len(key), heads // groups
    grouped = query.view(len(key), theirs)
    if theirs >= own and len(key) >= groups:
        taken = top(grouped.topk(own).values.sum(1) + key, groups)
        members = torch.stack([top(grouped[group], own) + group * theirs for group in taken.tolist()])
        return members.flatten(), taken
    score = (grouped + key[:, None] / theirs).flatten()
    members = top(score, heads)
    best = members.view(groups, own).gather(1, score[members].view(groups, own).argmax(1, keepdim=True))
    return members, best.flatten() // theirs


def key_of(axis: str, place: Place) -> Key:
    """Under which an axis of a matrix finds its choice."""
    return (None if axis == "residual" else place.layer, axis)
