"""Linear maps between the models' channels, by least squares on the same tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestrator.transfer.arms.carried import Carried, twins

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.arms.base import Start
    from orchestrator.transfer.sides import Matrix, Side


ROUNDING = 1 + 1e-6  # a true map may be as long as is allowed


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


class RidgeBounded(Ridge):
    """Ridge's maps, which may not make an update longer than the models' activations differ in length.

    ΔW = B·A with B = U·√Σ and A = √Σ·Vᵀ. Of ridge's penalties only those with which ‖A'‖ ≤ ‖A‖·g and ‖B'‖ ≤ ‖B‖·h
    (Frobenius), g = ‖X_T‖/‖X_S‖ and h = ‖Y_S‖/‖Y_T‖ over the tokens that maps are made of; where B'·A' is longer than
    ‖B·A‖·g·h still, it is shortened to that. The true map of a rotated, scaled or widened copy keeps all three. Without
    them an update that reads what texts seldom have arrived at up to 12,891 times its norm, and nothing learnt from it
    (experiments/transport). Ours.
    """

    kind: Literal["ridge_bounded"] = "ridge_bounded"  # type: ignore[assignment]
    starts_at: ClassVar[str] = "the teacher's update through linear maps that don't lengthen it"

    def carry(self, matrix: Matrix) -> tuple[Start, dict[str, float]]:
        """As every map's, and no longer than that."""
        from orchestrator.transfer.lowrank import product_svd
        from orchestrator.transfer.sides import Side, norm_of

        whole = product_svd(matrix.b, matrix.a)
        root = whole.s.sqrt()
        b, a = (whole.u * root).to(matrix.b), (root[:, None] * whole.vh).to(matrix.a)
        (b, a), good = super().carry(replace(matrix, b=b, a=a))
        most = norm_of(matrix.b, matrix.a)
        if isinstance(matrix.inputs, Side):
            most /= _longer(matrix.inputs)
        if isinstance(matrix.outputs, Side):
            most *= _longer(matrix.outputs)
        if (length := norm_of(b, a)) > most * ROUNDING:
            b = b * (most / length)
        return (b, a), good

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """As ridge's."""
        from orchestrator.transfer.regression import fitted

        most = float(z.norm()) / _longer(side)
        return fitted(side.student, side.teacher @ z.t(), side.held, most * ROUNDING).t()

    def written(self, z: Float[Tensor, "r nt"], side: Side) -> Float[Tensor, "r ns"]:
        """As ridge's; of the rows z those of held-out tokens, the last, are no part of an update."""
        from orchestrator.transfer.regression import through

        rows = len(z) - side.held
        most = float(z[:rows].norm()) * _longer(side) * ROUNDING
        fits = lambda found: bool(found[:rows].norm() <= most)  # noqa: E731
        return through(z, side.teacher, side.student, side.held, fits)


def _longer(side: Side) -> float:
    """‖H_S‖/‖H_T‖."""
    fitted = side.fitted
    return float(fitted.student.double().norm() / fitted.teacher.double().norm())


for _arm in (Ridge, RidgeBounded):
    twins(_arm, "random_map", "spectrum", "shuffled_texts")
