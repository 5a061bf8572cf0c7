"""The update seen in both bases' own singular directions: no texts are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.carried import Carried, twins

if TYPE_CHECKING:
    from orchestrator.transfer.arms.base import Start
    from orchestrator.transfer.sides import Matrix


class CrossLora(Carried):
    """The teacher's update between the bases' singular directions, k-th to k-th: B' = U_S·U_Tᵀ·B, A' = A·V_T·V_Sᵀ.

    Cross-LoRA (arXiv 2508.05232), reconstructed from its description, which was not to be had with its code. It rests
    on an order that two models have no reason to share, and on signs that an SVD leaves open: they are those by which
    each U's largest entry is positive. Published: up to 5.26 % relative over the base on ARC, OBQA and HellaSwag; an
    independent study found plain copying better between related bases.
    """

    kind: Literal["cross_lora"] = "cross_lora"
    starts_at: ClassVar[str] = "the teacher's update between both models' main directions"
    reads: ClassVar[Literal["texts", "weights"]] = "weights"
    directions: int = Field(128, ge=1)  # of each base matrix

    def carry(self, matrix: Matrix) -> tuple[Start, dict[str, float]]:
        """Both factors; a side that counts tokens is matched by token. Nothing is said of how good it is."""
        from orchestrator.transfer.lowrank import truncated_svd
        from orchestrator.transfer.sides import Tokens

        assert matrix.weights is not None
        theirs, own = matrix.weights
        count = min(self.directions, *theirs.shape, *own.shape)
        one, other = truncated_svd(theirs, count), truncated_svd(own, count)
        b, a, inputs, outputs = matrix.b, matrix.a, matrix.inputs, matrix.outputs
        a = inputs.pick(a) if isinstance(inputs, Tokens) else (a.float() @ one.vh.t()) @ other.vh
        b = outputs.pick(b.t()).t() if isinstance(outputs, Tokens) else other.u @ (one.u.t() @ b.float())
        return (b, a), {}


twins(CrossLora, "random_map", "spectrum")
