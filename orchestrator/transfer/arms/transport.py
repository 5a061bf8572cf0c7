"""The teacher's weights themselves, channel to channel by optimal transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.carried import CarriedWeights, LayerMap, Transported, twins

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.sides import Side


class TransportMerge(CarriedWeights):
    """Part of the way from the student's weights to the teacher's: W_S + α·(Σ_j P_ij·Q_out·W_Tj·Q_inᵀ - W_S).

    Transport and Merge (arXiv 2602.05495): Q are Sinkhorn's plans at a cost of 1 - Pearson's r between channels, P one
    between layers; as a LoRA, the difference's strongest directions. Published for attention alone; MalayMMLU, 1B from
    8B: 42.30 → 46.19, with α chosen on what is reported (a source of 1B gave 47.65). Here α is the scale that
    validation rows choose. P rests on the layers' CKA, since plans of all pairs of layers would cost as many passes as
    there are pairs, and takes the nearest layers alone. What is written is averaged and what is read summed, so that a
    teacher with copies of the student's channels is the student; how the paper norms its plans isn't known here.
    """

    kind: Literal["transport_merge"] = "transport_merge"
    starts_at: ClassVar[str] = "the teacher's weights by optimal transport between channels"
    layers: LayerMap = Transported()
    regularisation: float = Field(0.05, gt=0)  # of both plans, in units of the cost

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """z's columns summed by the plan."""
        from orchestrator.transfer.transport import summed

        return summed(z, side.fitted.teacher, side.fitted.student, self.regularisation)

    def written(self, z: Float[Tensor, "r nt"], side: Side) -> Float[Tensor, "r ns"]:
        """z's columns averaged by the plan."""
        from orchestrator.transfer.transport import averaged

        return averaged(z, side.fitted.teacher, side.fitted.student, self.regularisation)


twins(TransportMerge, "random_map", "spectrum", "shuffled_texts")
