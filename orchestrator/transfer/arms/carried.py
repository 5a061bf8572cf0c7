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

from orchestrator.transfer.arms.base import BaseArm, Need
from orchestrator.transfer.arms.twosided import TwoSided
from orchestrator.transfer.layers import Explicit, First, Last, Random, Uniform, from_text

if TYPE_CHECKING:
    import torch

    from orchestrator.transfer.arms.base import Start

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


LayerMap = Annotated[
    Annotated[Uniform | Random | First | Last | Explicit | Cka, Field(discriminator="kind")], BeforeValidator(from_text)
]


class Carried(BaseArm, TwoSided):
    """The teacher's update, in the student's channels."""

    needs: ClassVar[tuple[Need, ...]] = ("carried",)
    twin: ClassVar[Twin | None] = None
    reads: ClassVar[Literal["texts", "weights"]] = "texts"  # what the maps are made of
    layers: LayerMap = Uniform()  # which of the teacher's layers each of the student's takes over from
    arrives: Literal["inject", "start"] = "inject"
    neurons: Literal["after", "before"] = "after"

    @property
    def cancels(self) -> bool:
        """Whether the base loses what the arm starts at."""
        return self.arrives == "start"

    @property
    def injects(self) -> bool:
        """Whether it stays in it."""
        return self.arrives == "inject"

    def carrying(self) -> dict[str, Any]:
        """What the carried update depends on: nothing of how it arrives, or of which twin it is."""
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


def twins(arm: type[Carried], *which: Twin) -> None:
    """Define the arm's controls: arms of their own, called `ridge_random_map` and the like."""
    define: Any = type(arm)
    for twin in which:
        kind = f"{arm.model_fields['kind'].default}_{twin}"
        fields: dict[str, Any] = {
            "__module__": arm.__module__,
            "__doc__": f"Control of {arm.model_fields['kind'].default}: {TWINS[twin]}.",
            "__annotations__": {
                "kind": Literal[kind], "twin": ClassVar[Twin | None], "control_of": ClassVar[str],
                "starts_at": ClassVar[str], "is_control": ClassVar[bool], "has_content": ClassVar[bool],
            },
            "kind": kind, "twin": twin, "control_of": arm.model_fields["kind"].default, "starts_at": TWINS[twin],
            "is_control": True, "has_content": False,
        }  # fmt: skip
        define("".join(part.title() for part in kind.split("_")), (arm,), fields)
