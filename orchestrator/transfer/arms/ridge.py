"""Linear maps between the models' channels, by least squares on the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from orchestrator.transfer.arms.carried import Carried, twins

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.sides import Side


class Ridge(Carried):
    """The teacher's update between maps fitted by ridge regression: x_T ≈ P·x_S, y_S ≈ Q·y_T and ΔW_S = Q·ΔW_T·P.

    Both maps go where the data go: what the update reads is predicted from the student's inputs, and what it writes
    predicts the student's outputs. The penalty of each is the one of least error on held-out tokens. The plain member
    of a family of anchor maps; published studies report .14 to .31 of the gap that the student's own update closes.
    """

    kind: Literal["ridge"] = "ridge"
    starts_at: ClassVar[str] = "the teacher's update through linear maps fitted on texts"

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """z·P, from the regression of z·x_T on x_S alone: never an m_T x m_S map."""
        from orchestrator.transfer.regression import fitted

        return fitted(side.student, side.teacher @ z.t(), side.held).t()

    def written(self, z: Float[Tensor, "r nt"], side: Side) -> Float[Tensor, "r ns"]:
        """z·Qᵀ, from the regression of y_S on y_T."""
        from orchestrator.transfer.regression import through

        return through(z, side.teacher, side.student, side.held)


twins(Ridge, "random_map", "spectrum", "shuffled_texts")
