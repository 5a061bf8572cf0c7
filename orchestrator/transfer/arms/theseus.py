"""Rotations between the models' channels (Procrustes)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.carried import Carried, twins

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.sides import Side


class Theseus(Carried):
    """The teacher's update rotated into the student's channels: C = H_TᵀH_S = UΣVᵀ, T = UVᵀ, ΔW_S = T_outᵀ·ΔW_T·T_in.

    Theseus (arXiv 2602.12952) as far as it is known here; its language models' figures couldn't be confirmed. Where
    fewer tokens than channels were read, T is a rotation of what they span and nothing elsewhere. Its form without
    data, whose C is made of both weights' leading eigenvectors, is the arm `cross_lora`: each such C = E_T·D·E_Sᵀ with
    a diagonal D > 0 has E_T·E_Sᵀ as its nearest rotation.
    """

    kind: Literal["theseus"] = "theseus"
    starts_at: ClassVar[str] = "the teacher's update rotated by what texts have in common"
    centre: bool = False  # take the mean off each channel first
    whiten: float = Field(0.0, ge=0, le=0.5)  # the power of each side's Gram matrix that is divided by

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """z·T."""
        u, vh = self._rotation(side)
        return ((z.double() @ u) @ vh).to(z.dtype)

    def written(self, z: Float[Tensor, "r nt"], side: Side) -> Float[Tensor, "r ns"]:
        """z·T, as what is read."""
        return self.read(z, side)

    def _rotation(self, side: Side) -> tuple[Float[Tensor, "mt c"], Float[Tensor, "c ms"]]:
        """The two factors of T."""
        from orchestrator.transfer.rotation import rotation

        def make() -> tuple[Tensor, Tensor]:
            fitted = side.fitted
            return rotation(fitted.teacher, fitted.student, centre=self.centre, whiten=self.whiten)

        return side.once(("rotation", self.centre, self.whiten), make)


class TheseusStream(Theseus):
    """Theseus, but what a layer writes is rotated as what comes next reads it.

    What attention and feed-forward networks add to the residual stream has maps of its own in Theseus, which explain
    next to nothing of it on held-out tokens (R² mostly below 0, experiments/transport), and need not agree with those
    by which later layers' updates read the same stream. Here an update of `o` is written through the very rotation by
    which the same layer's `gate` and `up` read, and one of `down` through that of the next layer's `q`, or the head's.
    Ours.
    """

    kind: Literal["theseus_stream"] = "theseus_stream"  # type: ignore[assignment]
    starts_at: ClassVar[str] = "the teacher's update rotated, what it writes as what comes next reads"
    writes: ClassVar[Literal["own", "next"]] = "next"


class TheseusScaled(Theseus):
    """Theseus with a size to each rotation: x_T ≈ c·T·x_S and y_S ≈ c'·Tᵀ·y_T with the c of least squares.

    A rotation alone keeps lengths: in a student that was widened twofold each channel is there twice, and what its
    embedding writes would arrive √2 times too long. The size is taken on held-out tokens, as ridge's penalty is, since
    on those that T is made of chance is long, too: it falls with the correlation that T finds elsewhere, down to zero.
    Procrustes with a scale, Schönemann and Carroll 1970. Ours.
    """

    kind: Literal["theseus_scaled"] = "theseus_scaled"  # type: ignore[assignment]
    starts_at: ClassVar[str] = "the teacher's update rotated, and as long as the rotation explains"

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """c·z·T, c = ⟨H_T·T, H_S⟩ / ‖H_S·Tᵀ‖²."""
        both, _, own = self._lengths(side)
        return super().read(z, side) * (both / own if own else 0.0)

    def written(self, z: Float[Tensor, "r nt"], side: Side) -> Float[Tensor, "r ns"]:
        """c'·z·T, c' = ⟨H_T·T, H_S⟩ / ‖H_T·T‖²."""
        both, theirs, _ = self._lengths(side)
        return super().read(z, side) * (both / theirs if theirs else 0.0)

    def _lengths(self, side: Side) -> tuple[float, float, float]:
        """⟨H_T·T, H_S⟩, at least 0, ‖H_T·T‖² and ‖H_S·Tᵀ‖²: of held-out tokens, of all where none is held out."""

        def measure() -> tuple[float, float, float]:
            judged = side.unseen if side.held else side
            theirs, own = judged.teacher.double(), judged.student.double()
            if self.centre:
                theirs, own = theirs - theirs.mean(0), own - own.mean(0)
            u, vh = self._rotation(side)
            turned, within = (theirs @ u) @ vh, own @ vh.t()
            both = float((turned * own).sum().clamp_min(0))
            return both, float(turned.square().sum()), float(within.square().sum())

        return side.once(("lengths", self.centre, self.whiten), measure)


class TheseusRoles(Theseus):
    """Theseus, with a scale for each role's matrices (q, k, ..., head) in place of one for all.

    Their maps aren't equally good. From the common scale on, each role in turn takes what lowers the loss of the
    validation rows most. Ours.
    """

    kind: Literal["theseus_roles"] = "theseus_roles"  # type: ignore[assignment]
    starts_at: ClassVar[str] = "the teacher's update rotated, with a scale for each role's matrices"
    by_role: ClassVar[bool] = True


for _arm in (Theseus, TheseusStream, TheseusScaled, TheseusRoles):
    twins(_arm, "random_map", "spectrum", "shuffled_texts")
