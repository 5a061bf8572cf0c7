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
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from orchestrator.transfer.consistent import Consistent
from orchestrator.transfer.given import Given
from orchestrator.transfer.place import Block, Place, Shape, Structure, enough_heads, head_dims, sums, top
from orchestrator.transfer.scores import SLAB, Scores

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


class Window(Structure):
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


class HeadAligned(Structure):
    """The best window that cuts no attention head apart: our own variant of the paper's, whose windows may.

    Rows of q, k and v and columns of o are taken by whole heads, one after another; of a teacher's larger heads the
    same dimensions each (`head_dims`), so that rotary pairs stay whole.
    """

    kind: Literal["head_aligned"] = "head_aligned"

    def select(self, scores: Scores, place: Place) -> Block:
        """ValueError for larger or more heads in the student, and for smaller ones at a granularity above 1."""
        import torch

        headed = [axis in ("query", "key") for axis in place.axes]
        if not any(headed):
            return Window().select(scores, place)
        (theirs, own), axis, g = place.heads, headed.index(True), scores.granularity
        inside = head_dims(theirs, own)
        tiles = scores.tiles.movedim(axis, 0).unflatten(0, (-1, theirs // g))
        if own < theirs:
            if g > 1:
                raise ValueError(
                    f"structure: head_aligned can't cut heads of {own} from heads of {theirs} by tiles of {g}; set"
                    " measure.granularity=1"
                )
            tiles = tiles[:, inside]
        count, other = place.shape[axis] // own, place.shape[1 - axis]
        enough_heads(len(tiles), count)
        head, start = best_window(tiles.sum(1), (count, -(-other // g)))
        if own == theirs:
            origin = (head * theirs, start * g)
            return Block(place.shape, origin=origin if axis == 0 else origin[::-1])
        heads = (torch.arange(head, head + count)[:, None] * theirs + inside).flatten()
        sides = heads, torch.arange(start, start + other)
        return Block(place.shape, rows=sides[axis], cols=sides[1 - axis])


class RowColumn(Structure):
    """The rows and the columns with the highest mean S, in their original order: our reading of "row/column"."""

    kind: Literal["row_column"] = "row_column"

    def select(self, scores: Scores, place: Place) -> Block:
        """Exact at every granularity, since row and column sums are."""
        rows, cols = sums(scores)
        return Block(place.shape, rows=top(rows, place.shape[0]), cols=top(cols, place.shape[1]))


class Neuron(Structure):
    """The n·m single weights of highest S, in row-major order, reshaped: our reading of "neuron"."""

    kind: Literal["neuron"] = "neuron"

    def select(self, scores: Scores, place: Place) -> Block:
        """ValueError at a granularity above 1, where single weights have no scores."""
        if scores.granularity > 1:
            raise ValueError(f"structure: neuron needs granularity 1, the scores have {scores.granularity}")
        return Block(place.shape, flat=top(scores.tiles.flatten(), math.prod(place.shape)))


class RandomWeights(Structure):
    """As many single weights drawn at random, in row-major order: the teacher's values without any structure."""

    kind: Literal["random"] = "random"
    seed: int = 0

    def select(self, scores: Scores, place: Place) -> Block:
        """One draw per seed and matrix name, so that matrices of one shape get different draws."""
        import torch

        size = _matrix_shape(scores)
        draw = torch.randperm(size[0] * size[1], generator=_generator(self.seed, place.name))[: math.prod(place.shape)]
        return Block(place.shape, flat=draw.sort().values)


class RandomWindow(Structure):
    """A contiguous window at a random place: the control that asks whether *where* matters."""

    kind: Literal["random_window"] = "random_window"
    seed: int = 0

    def select(self, scores: Scores, place: Place) -> Block:
        """Uniform over the same starts that the window search chooses from."""
        import torch

        g, size, shape = _step(scores, place), _matrix_shape(scores), place.shape
        generator = _generator(self.seed, place.name)
        row, col = (
            int(torch.randint((size[axis] - shape[axis]) // g + 1, (), generator=generator)) * g for axis in (0, 1)
        )
        return Block(shape, origin=(row, col))


BlockSelection = Annotated[
    Annotated[
        Window | HeadAligned | Consistent | Given | RowColumn | Neuron | RandomWeights | RandomWindow,
        Field(discriminator="kind"),
    ],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


def best_window(scores: Float[Tensor, "N M"], shape: Shape) -> Shape:
    """Row and column of the n × m window with the largest sum, the first in row-major order among equals.

    From one row of windows to the next, a row of scores enters and one leaves: their difference, summed over every
    run of m columns, is what the sums change by. O(NM) time in float64, and no memory but a slab of rows, where the
    published way loops over all positions.
    """
    import torch

    n, m = shape
    slab = max(1, SLAB // scores.shape[1])
    first = sum(rows.sum(0, dtype=torch.float64) for rows in scores[:n].split(slab))
    assert isinstance(first, torch.Tensor)
    current = _sliding(first[None], m)
    best, place = float(current.max()), (0, int(current.argmax()))
    count = scores.shape[0] - n
    for start in range(0, count, slab):
        stop = min(start + slab, count)
        steps = scores[start + n : stop + n].double() - scores[start:stop]
        sums = _sliding(steps, m).cumsum_(0).add_(current)
        top = int(sums.argmax())
        if float(sums.view(-1)[top]) > best:
            row, col = divmod(top, sums.shape[1])
            best, place = float(sums.view(-1)[top]), (start + row + 1, col)
        current = sums[-1:].clone()
    return place


def _sliding(values: Float[Tensor, "n M"], length: int) -> Float[Tensor, "n runs"]:
    """Sums over every run of columns of this length: the first, then the differences between neighbours."""
    import torch

    first = values[:, :length].sum(1, keepdim=True)
    steps = values[:, length:] - values[:, : values.shape[1] - length]
    return torch.cat([first, first + steps.cumsum_(1)], 1)


def _step(scores: Scores, place: Place) -> int:
    """Of what windows' starts are multiples: 1 where one side is kept whole, whatever the granularity."""
    whole = any(kept == there for kept, there in zip(place.shape, _matrix_shape(scores), strict=True))
    return 1 if whole else scores.granularity


def _matrix_shape(scores: Scores) -> Shape:
    if scores.granularity == 1:
        return scores.tiles.shape[0], scores.tiles.shape[1]
    return len(scores.rows), len(scores.cols)


def _generator(seed: int, name: str) -> torch.Generator:
    import torch

    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
