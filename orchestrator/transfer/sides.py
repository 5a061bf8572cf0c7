"""What both models have at one matrix when they read the same tokens: all that a map between them is made of.

    matrix = Matrix(b, a, inputs=Side(x_t, x_s), outputs=Side(y_t, y_s))
    arm.carry(matrix)                       # the teacher's ΔW = B·A as an update (B', A') of the student's matrix

Tokens are rows. A side that counts tokens of the vocabulary is no side of channels, and needs no map: `Tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Side:
    """The same k tokens in the teacher's and in the student's channels; the last `held` of them are fitted by nobody.

    What is done with a side is done in float64: a Gram matrix has the square of its data's condition.
    """

    teacher: Float[Tensor, "k mt"]
    student: Float[Tensor, "k ms"]
    held: int = 0
    axis: str = ""  # what its channels count, as `orchestrator.models.families.AXES` has it
    layer: int | None = None  # the student's
    made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # maps of it, by what they depend on

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` makes of this side, at the first call: three of a layer's matrices read the same channels."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    @property
    def fitted(self) -> Side:
        """The tokens that a map is made of."""
        until = len(self.teacher) - self.held
        return Side(self.teacher[:until], self.student[:until], 0, self.axis, self.layer)

    @property
    def unseen(self) -> Side:
        """The tokens by which it is judged."""
        until = len(self.teacher) - self.held
        return Side(self.teacher[until:], self.student[until:], 0, self.axis, self.layer)

    @property
    def widths(self) -> tuple[int, int]:
        """The teacher's channels and the student's."""
        return self.teacher.shape[1], self.student.shape[1]


@dataclass(frozen=True)
class Tokens:
    """A side that counts tokens: for each of the student's the teacher's row, or -1."""

    rows: Int[Tensor, " v"]

    def pick(self, z: Float[Tensor, "r vt"]) -> Float[Tensor, "r vs"]:
        """What the teacher has (r, v_T) in the student's order (r, v_S); nothing where it lacks the token."""
        found = z[:, self.rows.clamp(min=0)]
        found[:, self.rows < 0] = 0
        return found


@dataclass(frozen=True)
class Matrix:
    """One of the student's matrices, and what the teacher's of the same role was changed by."""

    b: Float[Tensor, "nt r"]
    a: Float[Tensor, "r mt"]
    inputs: Side | Tokens
    outputs: Side | Tokens
    weights: tuple[Float[Tensor, "nt mt"], Float[Tensor, "ns ms"]] | None = None  # both bases', for who reads them


def explained(target: Float[Tensor, "k n"], found: Float[Tensor, "k n"]) -> float:
    """R² over all channels at once: the share of the target's variance about its mean that is explained.

    Negative where the mean would have been the better guess; NaN where there is nothing to explain.
    """
    about = (target - target.mean(0)).square().sum()
    return float(1 - (target - found).square().sum() / about) if about > 0 else float("nan")


def norm_of(b: Float[Tensor, "n r"], a: Float[Tensor, "r m"]) -> float:
    """‖B·A‖ (Frobenius) without the n x m matrix."""
    b, a = b.double(), a.double()
    return float(((b.t() @ b) * (a @ a.t())).sum().clamp_min(0).sqrt())
