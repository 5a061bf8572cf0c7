"""Learning what the teacher predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.base import BaseArm, Need

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Distilling(BaseArm):
    """Learns gold answers and the teacher's predictions of them."""

    needs: ClassVar[tuple[Need, ...]] = ("labels",)
    one_vocabulary: ClassVar[bool] = True
    changes_base: ClassVar[bool] = False
    rows: Literal["equal", "all"] = "equal"
    weight: float = Field(0.5, gt=0, le=1)  # of the teacher's predictions in the loss of the rows that have them
    temperature: float = Field(2.0, gt=0)

    def loss(
        self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any, states: Float[Tensor, "t d"] | None
    ) -> Float[Tensor, ""]:
        """A share of it is the distance to the teacher's likeliest tokens and their log-probabilities."""
        from orchestrator.transfer.distillation import divergence

        tokens, logs = (tensor.to(logits.device) for tensor in given)
        apart = divergence(logits, tokens, logs, self.temperature)
        return own.sum() + self.weight * (apart.sum() - own.sum())


class Distil(Distilling):
    """Plain LoRA that also learns the teacher's predictions (logit distillation, arXiv 1503.02531).

    `rows` says for how many training rows the teacher is asked. "equal": as many as cost the teacher what its
    sensitivities cost, a backward pass counting as two forward ones; the rest is learnt from gold answers alone.
    Answers are read at a temperature of 1, at which `{kind: distil, temperature: 1}` learns them. The teacher is asked
    as it is: one that was tuned on the task is asked by `distil_tuned`.
    """

    kind: Literal["distil"] = "distil"
    starts_at: ClassVar[str] = "plain LoRA, which then learns the teacher's predictions too"


class DistilTuned(Distilling):
    """Distillation from the teacher with its update, for which it is trained as for the arms that carry the update.

    So it is their rival at equal compute: the teacher's training, its answers to all training rows, the student's.
    """

    kind: Literal["distil_tuned"] = "distil_tuned"
    takes_update: ClassVar[bool] = True
    starts_at: ClassVar[str] = "plain LoRA, which then learns the predictions of the teacher with its update"
    rows: Literal["equal", "all"] = "all"
