"""How a LoRA starts: the one thing in which the arms of a comparison differ.

    arm.start(weight, factors, rank, generator)      # (B0, A0), or None: PEFT's own default

An arm that starts away from zero leaves the student's function as it was: the adapter trains
W - s·B0·A0 + s·B·A with s = alpha / rank, so that B0·A0 gives the subspace and the scale of the update and nothing else
(Seeking Neural Nuggets, arXiv 2310.11451, section 3; PiSSA, arXiv 2404.02948, does the same with the student's own W).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from orchestrator.transfer.lowrank import Factors, random_directions, truncated_svd

Start = tuple[Float[Tensor, "n r"], Float[Tensor, "r m"]]


class _Arm(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    extracts: ClassVar[bool] = False  # starts from a teacher's block
    changes_base: ClassVar[bool] = True  # starts away from zero, and takes its start from the base


class Lora(_Arm):
    """Plain LoRA (arXiv 2106.09685): A random, B zero. The baseline of every claim."""

    kind: Literal["lora"] = "lora"
    changes_base: ClassVar[bool] = False

    def start(self, weight: Tensor, factors: Factors | None, rank: int, generator: torch.Generator) -> Start | None:
        """PEFT's default start."""
        return None


class Pissa(_Arm):
    """The student's own principal directions (arXiv 2404.02948): a better start that needs no teacher."""

    kind: Literal["pissa"] = "pissa"

    def start(self, weight: Tensor, factors: Factors | None, rank: int, generator: torch.Generator) -> Start | None:
        """B0 = U·sqrt(S), A0 = sqrt(S)·Vᵀ of the student's matrix; embeddings too, where PEFT's own falls back."""
        own = truncated_svd(weight, rank)
        root = own.s.sqrt()
        return own.u * root, root[:, None] * own.vh


class Transfer(_Arm):
    """The teacher's block (Seeking Neural Nuggets)."""

    kind: Literal["transfer"] = "transfer"
    extracts: ClassVar[bool] = True

    def start(self, weight: Tensor, factors: Factors | None, rank: int, generator: torch.Generator) -> Start | None:
        """B0 = U·S, A0 = Vᵀ of the teacher's block; PEFT's default for a matrix that was not extracted."""
        if factors is None:
            return None
        kept = factors.truncate(rank)
        return kept.u * kept.s, kept.vh


class SpectrumControl(_Arm):
    """The teacher's singular values on random directions: decides whether the teacher's content matters."""

    kind: Literal["spectrum_control"] = "spectrum_control"
    extracts: ClassVar[bool] = True

    def start(self, weight: Tensor, factors: Factors | None, rank: int, generator: torch.Generator) -> Start | None:
        """As the transfer arm, on directions drawn anew in each trial."""
        return (
            None
            if factors is None
            else Transfer().start(weight, random_directions(factors.truncate(rank), generator), rank, generator)
        )


Arm = Annotated[
    Annotated[Lora | Pissa | Transfer | SpectrumControl, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]
