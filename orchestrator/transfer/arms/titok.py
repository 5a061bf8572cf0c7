"""Learning the tokens alone in which the teacher's update shows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from orchestrator.transfer.arms.base import BaseArm, Need, control
from orchestrator.transfer.arms.distil import Distilling

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class _Masked(BaseModel):
    """Which answer tokens are learnt: those of which the update makes the teacher surest, in such rows.

    A token's excess is log p of it with the teacher's update minus log p without: positive where the update knows
    better. A row's is its tokens' mean.
    """

    at_random: ClassVar[bool] = False
    rows_kept: float = Field(0.5, gt=0, le=1)  # of the training rows
    tokens_kept: float = Field(0.5, gt=0, le=1)  # of a kept row's answer tokens

    def masks(self, excess: Mapping[str, Float[Tensor, " t"]], seed: int) -> dict[str, Float[Tensor, " t"]]:
        """1 at tokens that are learnt and 0 at others, by row; the first wins a tie. At least one row and one token."""
        import torch

        draw = random.Random(seed)
        if self.at_random:
            excess = {row: torch.tensor([draw.random() for _ in one]) for row, one in sorted(excess.items())}
        of_row = {row: draw.random() if self.at_random else float(one.mean()) for row, one in excess.items()}
        best = sorted(of_row, key=lambda row: (-of_row[row], row))
        kept = {*best[: max(1, round(self.rows_kept * len(best)))]}
        found = {}
        for row, one in excess.items():
            mask = torch.zeros(len(one))
            if row in kept:
                order = one.argsort(descending=True, stable=True)
                mask[order[: max(1, round(self.tokens_kept * len(one)))]] = 1
            found[row] = mask
        return found


class Titok(_Masked, BaseArm):
    """Plain LoRA that learns the tokens in which the teacher's update shows (TiTok), and no others.

    The authors let the tuned teacher write the texts, and publish 4 to 10 %; here they are the task's own answers, on
    which the two teachers, tuned and not, are compared.
    """

    kind: Literal["titok"] = "titok"
    needs: ClassVar[tuple[Need, ...]] = ("excess",)
    takes_update: ClassVar[bool] = True
    one_vocabulary: ClassVar[bool] = True
    starts_at: ClassVar[str] = "plain LoRA, which learns the tokens in which the teacher's update shows"
    changes_base: ClassVar[bool] = False

    def said(self, given: Mapping[Need, Any], seed: int) -> Mapping[str, Any]:
        """The mask of every row."""
        return self.masks(given["excess"], seed)

    def loss(
        self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any, states: Float[Tensor, "t d"] | None
    ) -> Float[Tensor, ""]:
        """Of the chosen tokens."""
        return (own * given.to(own)).sum()


control(Titok, "random", "plain LoRA, which learns as many tokens at random", at_random=True, has_content=False)


class DistilTitok(_Masked, Distilling):
    """Distillation from the teacher with its update at the chosen tokens alone, and at the temperature at which answers
    are read, 1."""

    kind: Literal["distil_titok"] = "distil_titok"
    needs: ClassVar[tuple[Need, ...]] = ("labels", "excess")
    takes_update: ClassVar[bool] = True
    starts_at: ClassVar[str] = "plain LoRA, which learns the teacher's predictions where its update shows"
    temperature: float = Field(1.0, gt=0)

    def said(self, given: Mapping[Need, Any], seed: int) -> Mapping[str, Any]:
        """Predictions, where there are some, and mask of every row."""
        return {row: (given["labels"].get(row), mask) for row, mask in self.masks(given["excess"], seed).items()}

    def loss(
        self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any, states: Float[Tensor, "t d"] | None
    ) -> Float[Tensor, ""]:
        """Each chosen token's share of both; of rows that the teacher wasn't asked for, of the answers alone."""
        from orchestrator.transfer.distillation import divergence

        labels, mask = given
        if labels is None:
            return (own * mask.to(own)).sum()
        tokens, logs = (tensor.to(logits.device) for tensor in labels)
        apart = divergence(logits, tokens, logs, self.temperature)
        return ((own + self.weight * (apart - own)) * mask.to(own)).sum()


control(
    DistilTitok, "random", "plain LoRA, which learns the teacher's predictions at as many random tokens", at_random=True
)
