"""How a LoRA starts: the one thing in which the arms of a comparison differ.

    arm.needs                                # the steps whose results it is given, by name
    arm.starts(given, rank, generator)       # (B0, A0) by module; PEFT's own default where there is none
    arm.loss(own, logits, given_of_row)      # of a training row that a step has looked at

An arm that starts away from zero leaves the student's function as it was: the adapter trains
W - s·B0·A0 + s·B·A with s = alpha / rank, so that B0·A0 gives the subspace and the scale of the update and nothing else
(Seeking Neural Nuggets, arXiv 2310.11451, section 3; PiSSA, arXiv 2404.02948, does the same with the student's own W).
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from orchestrator.transfer.arms.base import ARMS, BaseArm, Need

from orchestrator.transfer.arms.plain import Lora  # isort: skip  (in this order `pkt strategies` lists them)
from orchestrator.transfer.arms.blocks import Transfer  # isort: skip
from orchestrator.transfer.arms.distil import Distil  # isort: skip
from orchestrator.transfer.arms import cross_lora, ridge, theseus, transport  # isort: skip
from orchestrator.transfer.arms import laten, merged  # isort: skip
from orchestrator.transfer.arms import edited, semalign, titok  # isort: skip

__all__ = [
    "ARMS", "Arm", "BaseArm", "Distil", "Lora", "Need", "Transfer",
    "cross_lora", "edited", "laten", "merged", "ridge", "semalign", "theseus", "titok", "transport",
]  # fmt: skip

if TYPE_CHECKING:
    Arm = BaseArm
else:
    Arm = Annotated[
        Annotated[reduce(or_, ARMS.values()), Field(discriminator="kind")],
        BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
    ]
