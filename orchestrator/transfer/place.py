"""What is cut from where: the words that every structure is written in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # a structure is chosen without torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from orchestrator.transfer.scores import Scores

    Sums = tuple["Place", Float[Tensor, " N"], Float[Tensor, " M"]]  # a matrix's S by row and by column

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


class Chooser(Protocol):
    """What finds a matrix's block; it can be sent to another process."""

    def select(self, scores: Scores, place: Place) -> Block:
        """The block of one matrix."""


class Structure(BaseModel):
    """A way to choose blocks, which is its own configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def prepared(self, matrices: Iterable[Sums]) -> Any:
        """What chooses, once it knows all matrices; most look at one at a time and need no such knowledge."""
        return self


def sums(scores: Scores) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """S of each row and of each column: as measured, or from single weights."""
    import torch

    if len(scores.rows):
        return scores.rows, scores.cols
    return scores.tiles.sum(1, dtype=torch.float64), scores.tiles.sum(0, dtype=torch.float64)


def top(values: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest, ascending; the earlier one wins a tie."""
    return values.sort(descending=True, stable=True).indices[:count].sort().values


def head_dims(teacher: int, student: int) -> Int[Tensor, " student"]:
    """Which dimensions of a teacher's attention head become a smaller head, with their rotary pairs whole.

    Rotary positions turn dimensions j and j + size/2 together, by base^(-2j/size): of a head twice as large every
    second pair turns as the small head's does. So the small head's pair j is the large one's j * teacher // student;
    where that doesn't divide, the nearest pair that turns no slower. Models that turn only a part of each head
    (GPT-NeoX, some Phi-3) are taken as if they turned all of it. ValueError where the teacher's head is smaller.
    """
    import torch

    if student == teacher:
        return torch.arange(teacher)
    if student > teacher:
        raise ValueError(
            f"structure: the student's attention heads of {student} can't be whole heads of the teacher's {teacher};"
            " take window, or leave attention out with --modules"
        )
    pairs = torch.arange(student // 2) * teacher // student
    return torch.cat([pairs, pairs + teacher // 2])


def enough_heads(teacher: int, student: int) -> None:
    """ValueError where the teacher has fewer heads than are wanted, which larger ones don't make up for."""
    if student > teacher:
        raise ValueError(
            f"structure: the student wants {student} attention heads of a teacher's matrix that has {teacher}; take"
            " window, or leave attention out with --modules"
        )
