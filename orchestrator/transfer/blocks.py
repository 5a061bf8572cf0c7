"""Which part of a teacher's matrix becomes a matrix of the student's shape.

    block = Window().select(scores, Place("q", (4096, 4096)))     # scores: S of a 5120 x 5120 matrix
    block.take(weight)                                # (4096, 4096)

Seeking Neural Nuggets (arXiv 2310.11451) cuts the contiguous window with the largest summed sensitivity; its
ablation compares row/column, neuron and random choices, whose exact form its text doesn't give: each docstring says
how we read it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from orchestrator.transfer.sensitivity import Scores

Shape = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Which block is wanted: of the teacher's matrix `name`, of the student's `shape`.

    `axes` say what rows and columns count: two of "residual", "query", "key", "ffn" and "vocabulary"; `heads` are the
    teacher's and the student's size of an attention head, into which "query" and "key" axes are divided; `layer` is
    the student's, None outside layers.
    """

    name: str
    shape: Shape
    axes: tuple[str, str] = ("residual", "residual")
    heads: tuple[int, int] = (1, 1)
    layer: int | None = None


@dataclass(frozen=True)
class Block:
    """Where a block lies in the teacher's matrix: `rows` × `cols`, or single weights by their `flat` position."""

    shape: Shape
    rows: Int[Tensor, " n"] | None = None
    cols: Int[Tensor, " m"] | None = None
    flat: Int[Tensor, " nm"] | None = None
    origin: Shape | None = None  # row and column of a contiguous window's first weight

    def take(self, matrix: Float[Tensor, "N M"]) -> Float[Tensor, "n m"]:
        """The block of this matrix; works on scores as on weights."""
        if self.origin is not None:
            (row, col), (n, m) = self.origin, self.shape
            return matrix[row : row + n, col : col + m]
        if self.flat is not None:
            return matrix.flatten()[self.flat].view(self.shape)
        assert self.rows is not None and self.cols is not None
        return matrix[self.rows][:, self.cols]

    def describe(self) -> list[int] | dict[str, list[int]] | None:
        """As transfer.json records it; None for single weights, which are too many for a text file."""
        if self.origin is not None:
            return list(self.origin)
        if self.rows is None or self.cols is None:
            return None
        return {"rows": self.rows.tolist(), "columns": self.cols.tolist()}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Window(_Frozen):
    """The contiguous window with the largest sum of S, the first in row-major order among equals (the paper)."""

    kind: Literal["window"] = "window"

    def select(self, scores: Scores, place: Place) -> Block:
        """Windows start (and end) on multiples of the scores' granularity; g = 1 is the paper's exact search.

        Exact at every g where a side is kept whole, as in embeddings: the sums along it are all that counts.
        """
        g, shape, size = scores.granularity, place.shape, _matrix_shape(scores)
        if shape[0] == size[0]:
            return Block(shape, origin=(0, best_window(sums(scores)[1][None], (1, shape[1]))[1]))
        if shape[1] == size[1]:
            return Block(shape, origin=(best_window(sums(scores)[0][:, None], (shape[0], 1))[0], 0))
        row, col = best_window(scores.tiles, (-(-shape[0] // g), -(-shape[1] // g)))
        return Block(shape, origin=(row * g, col * g))


class RowColumn(_Frozen):
    """The rows and the columns with the highest mean S, in their original order: our reading of "row/column"."""

    kind: Literal["row_column"] = "row_column"

    def select(self, scores: Scores, place: Place) -> Block:
        """Exact at every granularity, since row and column sums are."""
        rows, cols = sums(scores)
        return Block(place.shape, rows=_top(rows, place.shape[0]), cols=_top(cols, place.shape[1]))


class Neuron(_Frozen):
    """The n·m single weights of highest S, in row-major order, reshaped: our reading of "neuron"."""

    kind: Literal["neuron"] = "neuron"

    def select(self, scores: Scores, place: Place) -> Block:
        """ValueError at a granularity above 1, where single weights have no scores."""
        if scores.granularity > 1:
            raise ValueError(f"structure: neuron needs granularity 1, the scores have {scores.granularity}")
        return Block(place.shape, flat=_top(scores.tiles.flatten(), math.prod(place.shape)))


class RandomWeights(_Frozen):
    """As many single weights drawn at random, in row-major order: the teacher's values without any structure."""

    kind: Literal["random"] = "random"
    seed: int = 0

    def select(self, scores: Scores, place: Place) -> Block:
        """One draw per seed and matrix name, so that matrices of one shape get different draws."""
        size = _matrix_shape(scores)
        draw = torch.randperm(size[0] * size[1], generator=_generator(self.seed, place.name))[: math.prod(place.shape)]
        return Block(place.shape, flat=draw.sort().values)


class RandomWindow(_Frozen):
    """A contiguous window at a random place: the control that asks whether *where* matters."""

    kind: Literal["random_window"] = "random_window"
    seed: int = 0

    def select(self, scores: Scores, place: Place) -> Block:
        """Uniform over the same starts that the window search chooses from."""
        g, size, shape = _step(scores, place), _matrix_shape(scores), place.shape
        generator = _generator(self.seed, place.name)
        row, col = (
            int(torch.randint((size[axis] - shape[axis]) // g + 1, (), generator=generator)) * g for axis in (0, 1)
        )
        return Block(shape, origin=(row, col))


BlockSelection = Annotated[
    Annotated[Window | RowColumn | Neuron | RandomWeights | RandomWindow, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


def best_window(scores: Float[Tensor, "N M"], shape: Shape) -> Shape:
    """Row and column of the n × m window with the largest sum, the first in row-major order among equals.

    Sliding sums in float64 along one axis and then along the other: O(NM) time, and no more memory than the
    sums along the axis that leaves fewer of them, where the published way loops over all positions.
    """
    first = 0 if scores.shape[0] - shape[0] <= scores.shape[1] - shape[1] else 1
    sums = _sliding(_sliding(scores, shape[first], first), shape[1 - first], 1 - first)
    return divmod(int(sums.argmax()), sums.shape[1])


def _sliding(values: Tensor, length: int, dim: int) -> Tensor:
    """Sums over every run of `length` along `dim`: the first run, then the differences between neighbours."""
    count = values.shape[dim] - length
    first = values.narrow(dim, 0, length).sum(dim, keepdim=True, dtype=torch.float64)
    if count == 0:
        return first
    steps = values.narrow(dim, length, count).double() - values.narrow(dim, 0, count)
    return torch.cat([first, first + steps.cumsum_(dim)], dim)


def sums(scores: Scores) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """S of each row and of each column: as measured, or from single weights."""
    if len(scores.rows):
        return scores.rows, scores.cols
    return scores.tiles.sum(1, dtype=torch.float64), scores.tiles.sum(0, dtype=torch.float64)


def _top(values: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest, ascending; the earlier one wins a tie."""
    return values.sort(descending=True, stable=True).indices[:count].sort().values


def _step(scores: Scores, place: Place) -> int:
    """Of what windows' starts are multiples: 1 where one side is kept whole, whatever the granularity."""
    whole = any(kept == there for kept, there in zip(place.shape, _matrix_shape(scores), strict=True))
    return 1 if whole else scores.granularity


def _matrix_shape(scores: Scores) -> Shape:
    if scores.granularity == 1:
        return scores.tiles.shape[0], scores.tiles.shape[1]
    return len(scores.rows), len(scores.cols)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
