"""Starts at blocks of the teacher, and their controls, each of which differs from transfer in one thing alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from orchestrator.transfer.arms.base import BaseArm, Need, control

if TYPE_CHECKING:
    import torch

    from orchestrator.transfer.arms.base import Start
    from orchestrator.transfer.lowrank import Factors


class _FromTeacher(BaseArm):
    """Starts at a block's singular values and directions, balanced: B0 = U·√S, A0 = √S·Vᵀ.

    Adam's steps have one size whatever a gradient's is, so that how the size of B0·A0 is shared between the halves is
    a learning rate for each. PEFT 0.21.2 shares it evenly in PiSSA; leaves all of it to A0 in OLoRA, whose B0 has unit
    columns; and all of it, of a gradient's and not of the matrix's, to B0 in LoRA-GA, whose A0 has unit rows. With the
    split that PiSSA has, a comparison with it is one of directions, and a teacher that is the student starts there.
    """

    needs: ClassVar[tuple[Need, ...]] = ("factors",)
    random_directions: ClassVar[bool] = False  # drawn anew in each trial, with the block's singular values
    split: Literal["balanced", "left"] = "balanced"  # left: B0 = U·S, A0 = Vᵀ, the form of Seeking Neural Nuggets

    def starts(self, given: Mapping[Need, Any], rank: int, generator: torch.Generator) -> dict[str, Start]:
        """Each block's own."""
        return {name: self.start(factors, rank, generator) for name, factors in sorted(given["factors"].items())}

    def start(self, factors: Factors, rank: int, generator: torch.Generator) -> Start:
        """B0 and A0 of one of the teacher's blocks."""
        kept = factors.truncate(rank)
        if self.random_directions:
            kept = kept.random_directions(generator)
        if self.split == "left":
            return kept.u * kept.s, kept.vh
        root = kept.s.sqrt()
        return kept.u * root, root[:, None] * kept.vh


class Transfer(_FromTeacher):
    """The teacher's block (Seeking Neural Nuggets)."""

    kind: Literal["transfer"] = "transfer"
    starts_at: ClassVar[str] = "the teacher's most sensitive blocks"
    judged_by: ClassVar[str | None] = "spectrum_control"


class SpectrumControl(_FromTeacher):
    """The teacher's singular values on random directions: decides whether the teacher's content matters."""

    kind: Literal["spectrum_control"] = "spectrum_control"
    starts_at: ClassVar[str] = "random directions with the teacher's singular values"
    is_control: ClassVar[bool] = True
    has_content: ClassVar[bool] = False
    random_directions: ClassVar[bool] = True


class RandomWindow(_FromTeacher):
    """Windows at random places of the same layers, drawn anew in each trial: decides whether *where* matters."""

    kind: Literal["random_window"] = "random_window"
    starts_at: ClassVar[str] = "windows at random places of the same layers"
    is_control: ClassVar[bool] = True

    def fixes(self, seed: int) -> dict[str, dict[str, Any]]:
        """Another structure in every trial."""
        return {"structure": {"kind": "random_window", "seed": seed}}


class ShuffledSeeds(_FromTeacher):
    """Sensitivities of seed examples with each other's answers: decides whether the task in them matters."""

    kind: Literal["shuffled_seeds"] = "shuffled_seeds"
    starts_at: ClassVar[str] = "sensitivities of seed examples with each other's answers"
    is_control: ClassVar[bool] = True

    def fixes(self, seed: int) -> dict[str, dict[str, Any]]:
        """A teacher's pass of its own, which all of the arm's trials share."""
        return {"measure": {"shuffled": True}}


class ConsistentTransfer(_FromTeacher):
    """Seeking with one choice for the whole model: the same residual dimensions, whole heads and whole neurons.

    A window of its own in every matrix (Seeking Neural Nuggets) breaks what the matrices do together; these blocks are
    a smaller network cut out of the teacher.
    """

    kind: Literal["consistent_transfer"] = "consistent_transfer"
    starts_at: ClassVar[str] = "a smaller network cut out of the teacher"
    drawn: ClassVar[bool] = False  # anew in each trial, whatever is sensitive

    def fixes(self, seed: int) -> dict[str, dict[str, Any]]:
        """The structure."""
        return {"structure": {"kind": "consistent", "drawn": seed if self.drawn else None}}


control(ConsistentTransfer, "random", "a network cut out of the teacher at random", drawn=True)
control(
    ConsistentTransfer, "spectrum", "random directions with the cut-out network's singular values",
    random_directions=True, has_content=False,
)  # fmt: skip
