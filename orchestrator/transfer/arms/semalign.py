"""Learning to be where the teacher is, told in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.base import BaseArm, Need, control

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Semalign(BaseArm):
    """Plain LoRA of one layer whose output is drawn to the teacher's, composed of what tokens mean in each model.

    SemAlign (arXiv 2510.24208, version 1): S are the unit-norm columns of a head's pseudo-inverse, one a token; the
    teacher's state h_T is a = S_Tᵀh_T/‖h_T‖ in tokens and h̃_S = S_S·a in the student's channels. The loss of a token is
    (1 - cos of the layer's output and h̃_S) + (1 - cos of the logits and the label's indicator). Student layer k looks
    at the teacher's ⌊L_T·k/L_S⌋, at least the first, counted from 1; k is the middle one, since which one the paper
    takes isn't known here. Rows to learn it from are those that cost the teacher what its sensitivities cost; others
    are learnt as plain LoRA learns them. Published (7B-chat from 13B): MMLU 44.20 → 50.30, GSM8K 16.07 → 19.21,
    without plain LoRA or PiSSA beside it.
    """

    kind: Literal["semalign"] = "semalign"
    needs: ClassVar[tuple[Need, ...]] = ("aligned_states",)
    one_vocabulary: ClassVar[bool] = True
    starts_at: ClassVar[str] = "plain LoRA of a layer that is drawn to where the teacher is"
    changes_base: ClassVar[bool] = False
    random_map: ClassVar[bool] = False
    rows: Literal["equal", "all"] = "equal"
    layer: int | None = Field(None, ge=0)  # the student's, from 0
    alone: bool = True  # no other layer's adapter is trained

    def said(self, given: Mapping[Need, Any], seed: int) -> Mapping[str, Any]:
        """Where to be, by row."""
        return given["aligned_states"]

    def watched(self, layers: int) -> int | None:
        """The layer."""
        return layers // 2 if self.layer is None else self.layer

    def learns(self, layer: int | None, layers: int) -> bool:
        """Only that layer's, where it is alone."""
        return not self.alone or layer == self.watched(layers)

    def source(self, theirs: int, own: int) -> int:
        """The teacher's layer for it, from 0, of so many layers in each."""
        watched = self.watched(own)
        assert watched is not None
        return max(1, theirs * (watched + 1) // own) - 1

    def loss(
        self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any, states: Float[Tensor, "t d"] | None
    ) -> Float[Tensor, ""]:
        """Both cosines; that of the logits is the label's logit over their norm, and the label's is in `own`."""
        import torch

        from orchestrator.transfer.sensitivity import widened

        assert states is not None
        near = torch.cosine_similarity(widened(states), given.to(states.device, torch.float32), dim=-1)
        scores = widened(logits)
        label = scores.logsumexp(-1) - own
        return (2 - near - label / scores.norm(dim=-1)).sum()


control(
    Semalign, "random_map", "the same drawn to places composed of tokens at random", random_map=True, has_content=False
)
