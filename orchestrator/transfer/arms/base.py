"""What an arm is: what it is given, and what it makes of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # an arm's name and what it starts at are read without torch
    import torch
    from jaxtyping import Float
    from torch import Tensor

    Start = tuple[Float[Tensor, "n r"], Float[Tensor, "r m"]]


# What a step gives an arm: the teacher's blocks by module; its predictions by training row; where a model is after each
# layer when it begins to answer the seed examples; what plain LoRA changes of the teacher, B and A by module; the same
# in the student's channels.
# How much surer the teacher's update makes it of each answer token; where it is at each of them, in the student's
# channels.
Need = Literal[
    "factors", "labels", "teacher_states", "student_states", "teacher_update", "carried", "excess", "aligned_states"
]
ARMS: dict[str, type[BaseArm]] = {}  # by kind; a class is in it once it is defined


class BaseArm(BaseModel):
    """Plain LoRA with nothing of its own: what an arm leaves unsaid is as here."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    needs: ClassVar[tuple[Need, ...]] = ()
    takes_update: ClassVar[bool] = False  # what the task changed of the teacher, which the sweep may have to train
    one_vocabulary: ClassVar[bool] = False  # what it is given of the teacher is in tokens
    has_content: ClassVar[bool] = True  # what it is given of the teacher goes into it, and not its size alone
    starts_at: ClassVar[str]  # for whoever sees a leaderboard for the first time
    is_control: ClassVar[bool] = False  # differs from another arm in that alone
    control_of: ClassVar[str] = "transfer"  # which
    judged_by: ClassVar[str | None] = None  # the control that a sweep brings along: whose doing was it?
    changes_base: ClassVar[bool] = True  # starts away from zero, and takes its start from the base
    outlasts: ClassVar[bool] = False  # trains for longer than was asked for
    initialiser: ClassVar[str | None] = None  # PEFT's name of it, where PEFT makes the start

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        if not cls.model_fields["kind"].is_required():
            ARMS[cls.model_fields["kind"].default] = cls

    @classmethod
    def of_teacher(cls) -> bool:
        """Whether it takes over what the teacher knows, so that a claim of it asks whether the teacher does."""
        return cls.has_content and bool({*cls.needs} - {"student_states"})

    @property
    def cancels(self) -> bool:
        """Whether the base loses what the arm starts at, so that its function is the untouched student's."""
        return self.changes_base

    @property
    def injects(self) -> bool:
        """Whether the adapter does something before any step."""
        return False

    @property
    def extracts(self) -> bool:
        """Whether it starts from a teacher's block."""
        return "factors" in self.needs

    def fixes(self, seed: int) -> dict[str, dict[str, Any]]:
        """Fields of a recipe's sections that make the arm what it is, whatever was asked for."""
        return {}

    def starts(self, given: Mapping[Need, Any], rank: int, generator: torch.Generator) -> dict[str, Start]:
        """B0 and A0 by module, from what the steps gave that it needs; a module without starts as PEFT has it."""
        return {}

    def loss(
        self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any, states: Float[Tensor, "t d"] | None
    ) -> Float[Tensor, ""]:
        """The loss of a training row's t answer tokens, of which `own` are the cross-entropies.

        Asked for rows of which a step that it needs has `given` something; others have the sum of `own`. `states`:
        after the layer that is `watched`, from where each of the tokens is foretold.
        """
        return own.sum()

    def said(self, given: Mapping[Need, Any], seed: int) -> Mapping[str, Any]:
        """What `loss` is given, by the names of training rows' files (`by_example.file_of`); some rows have nothing."""
        return given.get("labels", {})

    def watched(self, layers: int) -> int | None:
        """The student's layer, of so many, after which `loss` wants to see where it is."""
        return None

    def learns(self, layer: int | None, layers: int) -> bool:
        """Whether the adapter of one of so many layers is trained; of None, what is outside of layers."""
        return True

    def longer(self, theirs: float, own: float) -> float:
        """How many times as long as was asked for it trains, where a step of teacher and student takes so much."""
        return 1.0

    def check(self, rank: int, side: int) -> None:
        """ValueError for a rank that the arm can't have, where the smallest matrix has that many rows or columns."""


def control(of: type[BaseArm], name: str, starts_at: str, **differs: Any) -> None:
    """Define an arm that differs from another in the class variables `differs` alone and is called `KIND_name`.

    The first that is defined is the one that a sweep brings along.
    """
    own = of.model_fields["kind"].default
    kind = f"{own}_{name}"
    of.judged_by = vars(of).get("judged_by") or kind  # its own: one that extends another arm has controls of its own
    values = {"control_of": own, "starts_at": starts_at, "is_control": True, "judged_by": None, **differs}
    define: Any = type(of)
    define(
        "".join(part.title() for part in kind.split("_")), (of,),
        {
            "__module__": of.__module__, "__doc__": f"Control of {own}: {starts_at}.",
            "__annotations__": {"kind": Literal[kind], **dict.fromkeys(values, ClassVar[Any])}, "kind": kind, **values,
        },
    )  # fmt: skip
