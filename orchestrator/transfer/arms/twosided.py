"""An update between two maps: one for what it reads, one for what it writes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.arms.base import Start
    from orchestrator.transfer.sides import Matrix, Side


class TwoSided:
    """ΔW_S = (what `written` makes of B)·(what `read` makes of A): rank and content of the update stay."""

    reads: ClassVar[str] = "nothing"  # what the maps are made of
    neurons: str  # where feed-forward neurons are compared: after their activation, or before it

    def carry(self, matrix: Matrix) -> tuple[Start, dict[str, float]]:
        """B' (n_S, r) and A' (r, m_S) of the student's matrix, and how good the maps are on held-out tokens.

        `read`: the R² of what the update reads, A·x_T, when A' reads it off the student; `written`: of the student's
        outputs when they are predicted by what the teacher's map to. NaN where a side counts tokens.
        """
        import torch

        from orchestrator.transfer.sides import Tokens, explained

        b, a, inputs, outputs = matrix.b.t(), matrix.a, matrix.inputs, matrix.outputs
        good = dict.fromkeys(("read", "written"), math.nan)
        if isinstance(inputs, Tokens):
            a = inputs.pick(a)
        else:
            unseen, a = inputs.unseen, self.read(a, inputs)
            good["read"] = explained(unseen.teacher @ matrix.a.t(), unseen.student @ a.t())
        if isinstance(outputs, Tokens):
            b = outputs.pick(b)
        else:
            unseen = outputs.unseen
            both = self.written(torch.cat([b, unseen.teacher]), outputs)
            b = both[: len(b)]
            good["written"] = explained(unseen.student, both[len(b) :])
        return (b.t(), a), good

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """What the teacher reads off its channels, z·x_T, off the student's."""
        raise NotImplementedError

    def written(self, z: Float[Tensor, "r nt"], side: Side) -> Float[Tensor, "r ns"]:
        """What the teacher writes into its channels, in the student's."""
        raise NotImplementedError
