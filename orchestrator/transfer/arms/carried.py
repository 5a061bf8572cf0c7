"""Arms that carry the teacher's own update over: what training changed of it, in the student's channels.

The others start from what the teacher *is* where the task is sensitive; these from what the task *changed* of it,
ΔW = B·A, and differ in the maps between the two models' channels. A map is made of what both models compute from the
same texts. `arrives` says how the update does: injected, so that the LoRA is the carried update before any step, at
the scale of least loss on validation rows (0 among them); or as a start whose effect is taken away from the base, as
Seeking Neural Nuggets has it (arXiv 2310.11451).

Each has its controls by construction (`twins`): whatever a random map of the same update, or random directions with
the same singular values, or texts that don't belong together do as well, isn't knowledge that arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from orchestrator.transfer.arms.base import BaseArm, Need, control
from orchestrator.transfer.arms.twosided import TwoSided
from orchestrator.transfer.layers import Explicit, First, Last, Random, Uniform, from_text

if TYPE_CHECKING:
    import torch

    from orchestrator.transfer.arms.base import Start

SCALES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the carried update; Theseus looks between 0 and 5
OTHERS = (0.0, 0.5, 2.0)  # of the common scale, for each role's matrices
Twin = Literal["random_map", "spectrum", "shuffled_texts"]
TWINS: dict[Twin, str] = {
    "random_map": "the same update through random orthogonal maps",
    "spectrum": "random directions with the carried update's singular values",
    "shuffled_texts": "the same with maps between texts that don't belong together",
}


class Cka(BaseModel):
    """The monotone map under which both models' layers are most alike in what they make of the seed examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["cka"] = "cka"


class Transported(BaseModel):
    """For each of the student's layers several of the teacher's, each for a share: a transport plan between layers.

    Between layers whose outputs for the seed examples are alike (linear CKA) transport costs little.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["transport"] = "transport"
    most: int = Field(2, ge=1)  # of the teacher's layers for one of the student's
    regularisation: float = Field(0.05, gt=0)


ALIKE = (Cka, Transported)  # maps that ask what both models make of the seed examples
LayerMap = Annotated[
    Annotated[Uniform | Random | First | Last | Explicit | Cka | Transported, Field(discriminator="kind")],
    BeforeValidator(from_text),
]


class Arriving(BaseArm):
    """An update of the student's own matrices, made before the trial: it is injected, or a start that is cancelled."""

    needs: ClassVar[tuple[Need, ...]] = ("carried",)
    by_role: ClassVar[bool] = False  # each role's matrices are injected at a scale of their own
    arrives: Literal["inject", "start"] = "inject"

    @property
    def cancels(self) -> bool:
        """Whether the base loses what the arm starts at."""
        return self.arrives == "start"

    @property
    def injects(self) -> bool:
        """Whether it stays in it."""
        return self.arrives == "inject"

    def carrying(self) -> dict[str, Any]:
        """What the update depends on: nothing of how it arrives, or of which twin it is."""
        own = self.model_dump(mode="json", exclude={"arrives"})
        return own | {"kind": self.control_of if self.is_control else self.kind}

    def starts(self, given: Mapping[Need, Any], rank: int, generator: torch.Generator) -> dict[str, Start]:
        """The update's strongest directions, balanced as PiSSA has them; where it has fewer, the rest is plain LoRA's.

        There B is zero and A random, as PEFT begins them: with both at zero neither would ever learn.
        """
        import torch

        from orchestrator.transfer.lowrank import product_svd

        starts = {}
        for name, (b, a) in sorted(given["carried"].items()):
            whole = product_svd(b, a)
            kept = whole.truncate(min(rank, int((whole.s > 0).sum())))
            root = kept.s.sqrt()
            b0, a0 = kept.u * root, root[:, None] * kept.vh
            if (more := rank - b0.shape[1]) > 0:
                bound = a0.shape[1] ** -0.5
                fresh = (2 * torch.rand(more, a0.shape[1], generator=generator) - 1) * bound
                b0, a0 = torch.cat([b0, torch.zeros(len(b0), more)], 1), torch.cat([a0, fresh])
            starts[name] = (b0, a0)
        return starts


class Carried(Arriving, TwoSided):
    """The teacher's update, in the student's channels."""

    takes_update: ClassVar[bool] = True
    twin: ClassVar[Twin | None] = None
    reads: ClassVar[Literal["texts", "weights"]] = "texts"  # what the maps are made of
    layers: LayerMap = Uniform()  # which of the teacher's layers each of the student's takes over from
    neurons: Literal["after", "before"] = "after"
    # What a layer writes into the residual stream is mapped by what it itself writes, or as what comes next reads it.
    writes: ClassVar[Literal["own", "next"]] = "own"


class CarriedWeights(Carried):
    """The teacher's weights themselves, as far as the student's lack them: no update, and nothing is trained for it."""

    takes_update: ClassVar[bool] = False
    matrices: Literal["attention", "all"] = "attention"  # all: of feed-forward layers, too
    kept: int = Field(64, ge=1)  # directions of the difference, of which a trial takes as many as its rank

    def origins(self) -> tuple[str, ...]:
        """Of the matrices that are moved."""
        return ("attention",) if self.matrices == "attention" else ("attention", "ffn")


def twins(arm: type[Carried], *which: Twin) -> None:
    """Define the arm's controls: arms of their own, called `ridge_random_map` and the like."""
    for twin in which:
        control(arm, twin, TWINS[twin], twin=twin, has_content=False)
