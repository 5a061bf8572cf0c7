"""Starts that need no teacher: plain LoRA, and what PEFT makes of the student and its rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from orchestrator.transfer.arms.base import BaseArm


class Lora(BaseArm):
    """Plain LoRA (arXiv 2106.09685): A random, B zero. The baseline of every claim."""

    kind: Literal["lora"] = "lora"
    starts_at: ClassVar[str] = "plain LoRA"
    changes_base: ClassVar[bool] = False


class Pissa(BaseArm):
    """The student's own principal directions (PiSSA, arXiv 2404.02948): a better start that needs no teacher."""

    kind: Literal["pissa"] = "pissa"
    starts_at: ClassVar[str] = "the student's own main directions"
    initialiser: ClassVar[str | None] = "pissa_niter_16"  # by random projections, as its authors do it


class Olora(BaseArm):
    """Orthonormal columns of the student's matrix, by QR (OLoRA, arXiv 2406.01775)."""

    kind: Literal["olora"] = "olora"
    starts_at: ClassVar[str] = "orthonormal columns of the student's matrices"
    initialiser: ClassVar[str | None] = "olora"


class Orthogonal(BaseArm):
    """Random A and B whose product is zero since their rows are orthogonal; needs an even rank."""

    kind: Literal["orthogonal"] = "orthogonal"
    starts_at: ClassVar[str] = "random factors whose product is zero"
    changes_base: ClassVar[bool] = False
    initialiser: ClassVar[str | None] = "orthogonal"

    def check(self, rank: int, side: int) -> None:
        """ValueError for an odd rank."""
        if rank % 2:
            raise ValueError(f"rank: {rank} is odd, and the arm orthogonal needs an even one")


class Eva(BaseArm):
    """Principal directions of each layer's inputs (EVA, arXiv 2410.07170); embeddings have none and start plainly."""

    kind: Literal["eva"] = "eva"
    starts_at: ClassVar[str] = "main directions of the layers' inputs"
    changes_base: ClassVar[bool] = False
    initialiser: ClassVar[str | None] = "eva"


class LoraGa(BaseArm):
    """Directions of the student's own first gradient (LoRA-GA, arXiv 2407.05000)."""

    kind: Literal["lora_ga"] = "lora_ga"
    starts_at: ClassVar[str] = "directions of the student's first gradient"
    initialiser: ClassVar[str | None] = "lora_ga"

    def check(self, rank: int, side: int) -> None:
        """ValueError where a gradient has too few directions: B takes r of them, and A the next r."""
        if 2 * rank > side:
            raise ValueError(f"rank: {rank} is too large for the arm lora_ga; it takes at most {side // 2} here")


class LoraEqual(BaseArm):
    """Plain LoRA for so much longer as the teacher's own training takes: what its compute buys without a teacher.

    A step of both costs in proportion to their weights, so that it makes 1 + weights of the teacher / weights of the
    student as many epochs; of a teacher that trains for other epochs (`update.epochs`), by so much more. Maps and
    sensitivities, which take less, aren't counted.
    """

    kind: Literal["lora_equal"] = "lora_equal"
    starts_at: ClassVar[str] = "plain LoRA, trained longer by what the teacher's training costs"
    changes_base: ClassVar[bool] = False
    outlasts: ClassVar[bool] = True

    def longer(self, theirs: float, own: float) -> float:
        """By the teacher's share."""
        return 1 + theirs / own
