"""How a LoRA starts: the one thing in which the arms of a comparison differ.

    arm.needs                                # the steps whose results it is given, by name
    arm.starts(given, rank, generator)       # (B0, A0) by module; PEFT's own default where there is none
    arm.loss(own, logits, given_of_row)      # of a training row that a step has looked at

An arm that starts away from zero leaves the student's function as it was: the adapter trains
W - s·B0·A0 + s·B·A with s = alpha / rank, so that B0·A0 gives the subspace and the scale of the update and nothing else
(Seeking Neural Nuggets, arXiv 2310.11451, section 3; PiSSA, arXiv 2404.02948, does the same with the student's own W).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:  # an arm's name and what it starts at are read without torch
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.lowrank import Factors

    Start = tuple[Float[Tensor, "n r"], Float[Tensor, "r m"]]


# What a step gives an arm: the teacher's blocks by module; its predictions by training row; where a model is after each
# layer when it begins to answer the seed examples; what plain LoRA changes of the teacher, B and A by module.
Need = Literal["factors", "labels", "teacher_states", "student_states", "teacher_update"]
ARMS: dict[str, type[_Arm]] = {}  # by kind; a class is in it once it is defined


class _Arm(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    needs: ClassVar[tuple[Need, ...]] = ()
    one_vocabulary: ClassVar[bool] = False  # what it is given of the teacher is in tokens
    has_content: ClassVar[bool] = True  # what it is given of the teacher goes into it, and not its size alone
    starts_at: ClassVar[str]  # for whoever sees a leaderboard for the first time
    is_control: ClassVar[bool] = False  # differs from transfer in that alone
    changes_base: ClassVar[bool] = True  # starts away from zero, and takes its start from the base
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
    def extracts(self) -> bool:
        """Whether it starts from a teacher's block."""
        return "factors" in self.needs

    def fixes(self, seed: int) -> dict[str, dict[str, Any]]:
        """Fields of a recipe's sections that make the arm what it is, whatever was asked for."""
        return {}

    def starts(self, given: Mapping[Need, Any], rank: int, generator: torch.Generator) -> dict[str, Start]:
        """B0 and A0 by module, from what the steps gave that it needs; a module without starts as PEFT has it."""
        return {}

    def loss(self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any) -> Float[Tensor, ""]:
        """The loss of a training row's t answer tokens, of which `own` are the cross-entropies.

        Asked for rows of which a step that it needs has `given` something; others have the sum of `own`.
        """
        return own.sum()

    def check(self, rank: int, side: int) -> None:
        """ValueError for a rank that the arm can't have, where the smallest matrix has that many rows or columns."""


class Lora(_Arm):
    """Plain LoRA (arXiv 2106.09685): A random, B zero. The baseline of every claim."""

    kind: Literal["lora"] = "lora"
    starts_at: ClassVar[str] = "plain LoRA"
    changes_base: ClassVar[bool] = False


class Pissa(_Arm):
    """The student's own principal directions (PiSSA, arXiv 2404.02948): a better start that needs no teacher."""

    kind: Literal["pissa"] = "pissa"
    starts_at: ClassVar[str] = "the student's own main directions"
    initialiser: ClassVar[str | None] = "pissa_niter_16"  # by random projections, as its authors do it


class Olora(_Arm):
    """Orthonormal columns of the student's matrix, by QR (OLoRA, arXiv 2406.01775)."""

    kind: Literal["olora"] = "olora"
    starts_at: ClassVar[str] = "orthonormal columns of the student's matrices"
    initialiser: ClassVar[str | None] = "olora"


class Orthogonal(_Arm):
    """Random A and B whose product is zero since their rows are orthogonal; needs an even rank."""

    kind: Literal["orthogonal"] = "orthogonal"
    starts_at: ClassVar[str] = "random factors whose product is zero"
    changes_base: ClassVar[bool] = False
    initialiser: ClassVar[str | None] = "orthogonal"

    def check(self, rank: int, side: int) -> None:
        """ValueError for an odd rank."""
        if rank % 2:
            raise ValueError(f"rank: {rank} is odd, and the arm orthogonal needs an even one")


class Eva(_Arm):
    """Principal directions of each layer's inputs (EVA, arXiv 2410.07170); embeddings have none and start plainly."""

    kind: Literal["eva"] = "eva"
    starts_at: ClassVar[str] = "main directions of the layers' inputs"
    changes_base: ClassVar[bool] = False
    initialiser: ClassVar[str | None] = "eva"


class LoraGa(_Arm):
    """Directions of the student's own first gradient (LoRA-GA, arXiv 2407.05000)."""

    kind: Literal["lora_ga"] = "lora_ga"
    starts_at: ClassVar[str] = "directions of the student's first gradient"
    initialiser: ClassVar[str | None] = "lora_ga"

    def check(self, rank: int, side: int) -> None:
        """ValueError where a gradient has too few directions: B takes r of them, and A the next r."""
        if 2 * rank > side:
            raise ValueError(f"rank: {rank} is too large for the arm lora_ga; it takes at most {side // 2} here")


class _FromTeacher(_Arm):
    """Starts at a block's singular values and directions, balanced: B0 = U·√S, A0 = √S·Vᵀ.

    Adam's steps have one size whatever a gradient's is, so that how the size of B0·A0 is shared between the halves is
    a learning rate for each. PEFT 0.21.2 shares it evenly in PiSSA; leaves all of it to A0 in OLoRA, whose B0 has unit
    columns; and all of it, of a gradient's and not of the matrix's, to B0 in LoRA-GA, whose A0 has unit rows. With the
    split that PiSSA has, a comparison with it is one of directions, and a teacher that is the student starts there.
    """

    needs: ClassVar[tuple[Need, ...]] = ("factors",)
    split: Literal["balanced", "left"] = "balanced"  # left: B0 = U·S, A0 = Vᵀ, the form of Seeking Neural Nuggets

    def starts(self, given: Mapping[Need, Any], rank: int, generator: torch.Generator) -> dict[str, Start]:
        """Each block's own."""
        return {name: self.start(factors, rank, generator) for name, factors in sorted(given["factors"].items())}

    def start(self, factors: Factors, rank: int, generator: torch.Generator) -> Start:
        """B0 and A0 of one of the teacher's blocks."""
        kept = factors.truncate(rank)
        if self.split == "left":
            return kept.u * kept.s, kept.vh
        root = kept.s.sqrt()
        return kept.u * root, root[:, None] * kept.vh


class Transfer(_FromTeacher):
    """The teacher's block (Seeking Neural Nuggets)."""

    kind: Literal["transfer"] = "transfer"
    starts_at: ClassVar[str] = "the teacher's most sensitive blocks"


class SpectrumControl(_FromTeacher):
    """The teacher's singular values on random directions: decides whether the teacher's content matters."""

    kind: Literal["spectrum_control"] = "spectrum_control"
    starts_at: ClassVar[str] = "random directions with the teacher's singular values"
    is_control: ClassVar[bool] = True
    has_content: ClassVar[bool] = False

    def start(self, factors: Factors, rank: int, generator: torch.Generator) -> Start:
        """As the transfer arm, on directions drawn anew in each trial."""
        return super().start(factors.truncate(rank).random_directions(generator), rank, generator)


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


class Distil(_Arm):
    """Plain LoRA that also learns the teacher's predictions (logit distillation, arXiv 1503.02531).

    `rows` says for how many training rows the teacher is asked. "equal": as many as cost the teacher what its
    sensitivities cost, a backward pass counting as two forward ones; the rest is learnt from gold answers alone.
    """

    kind: Literal["distil"] = "distil"
    needs: ClassVar[tuple[Need, ...]] = ("labels",)
    one_vocabulary: ClassVar[bool] = True
    starts_at: ClassVar[str] = "plain LoRA, which then learns the teacher's predictions too"
    changes_base: ClassVar[bool] = False
    rows: Literal["equal", "all"] = "equal"
    weight: float = Field(0.5, gt=0, le=1)  # of the teacher's predictions in the loss of the rows that have them
    temperature: float = Field(2.0, gt=0)

    def loss(self, own: Float[Tensor, " t"], logits: Float[Tensor, "t v"], given: Any) -> Float[Tensor, ""]:
        """A share of it is the distance to the teacher's likeliest tokens and their log-probabilities."""
        from orchestrator.transfer.distillation import divergence

        tokens, logs = (tensor.to(logits.device) for tensor in given)
        apart = divergence(logits, tokens, logs, self.temperature)
        return own.sum() + self.weight * (apart.sum() - own.sum())


Arm = Annotated[
    Annotated[
        Lora
        | Pissa
        | Olora
        | Orthogonal
        | Eva
        | LoraGa
        | Transfer
        | SpectrumControl
        | RandomWindow
        | ShuffledSeeds
        | Distil,
        Field(discriminator="kind"),
    ],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]
