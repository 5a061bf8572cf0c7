"""What to do, as one frozen value.

    Recipe(teacher="llama2-70b", student="llama2-7b", task={"name": "gsm8k"}, arm="transfer", rank=16, seed=3)

A recipe is one trial. Its sections are the steps' parts: a step's result is named by its section and by what it builds
on, so that trials that agree on a section share that step. Where and how things run is another value, which is never
hashed: `orchestrator.run.Run`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from orchestrator.transfer.arms import Arm, Lora, Transfer
from orchestrator.transfer.arms.carried import ALIKE, SCALES, Carried
from orchestrator.transfer.blocks import BlockSelection, Window
from orchestrator.transfer.layers import LayerSelection, Sensitivity
from orchestrator.transfer.metrics import SensitivityMetric, Taylor

Origin = Literal["attention", "ffn", "embedding"]
RATES = 13  # learning rates that a search other than the grid chooses from
SEEDS = "measure.seeds"  # as an axis: names of tasks
ORIGINS: tuple[Origin, ...] = get_args(Origin)
Dtype = Literal["auto", "float32", "bfloat16", "float64"]  # auto: see orchestrator.models.dtypes


class Section(BaseModel):
    """Frozen, and without room for a misspelt field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskChoice(Section):
    """Which task, and the folder of its rows, where they aren't to come from the hub."""

    name: str = "demo"
    data: str | None = None
    template: Literal["plain", "chat"] = "plain"
    shots: int = Field(0, ge=0)  # solved examples before each question that is scored; none in training
    metric: str | None = None  # of a file of chats, or another one of the task's; None: the task's own
    judge: str | None = None  # of win rates: the address of an OpenAI-compatible endpoint
    judge_model: str | None = None  # what it is to judge with; without an address, a checkpoint that judges here
    run_code: bool = False  # run programs that models wrote, in sandboxes

    def __str__(self) -> str:
        return f"{self.name}:{self.shots}" if self.shots else self.name

    @property
    def own_judge(self) -> str | None:
        """The checkpoint that judges here, where no endpoint does."""
        return None if self.judge else self.judge_model

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A name alone, and NAME:8 for eight shots."""
        fields = {"name": value} if isinstance(value, str) else value
        if isinstance(fields, dict) and (found := re.fullmatch(r"(.+):(\d+)", str(fields.get("name", "")))):
            fields = fields | {"name": found[1], "shots": int(found[2])}
        return fields


class Measure(Section):
    """The teacher's pass over the seed examples."""

    seeds: str | None = None  # a chat JSONL, or another task's name, in place of the task's own seed examples
    examples: int = Field(32, ge=1)
    max_tokens: int = Field(2048, ge=2)
    metric: SensitivityMetric = Taylor()
    granularity: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    passes: Literal["auto", 1, 2] = "auto"  # 2: tiles choose the layers, then a second pass gives theirs exactly
    dtype: Dtype = "auto"  # of the teacher, in its scoring too
    shuffled: bool = False  # give every seed example another one's answer: a control
    skip_bad_examples: bool = False  # leave out a seed example whose loss is not finite


class Update(Section):
    """What training changed of the teacher, for arms that carry it over: plain LoRA on the task, of these settings."""

    adapter: str | None = None  # in its place: a LoRA of the teacher, a folder or a hub id
    base: str | None = None  # or what the teacher was trained from: the difference is factorised at the rank
    rank: int = Field(16, ge=1)
    lr: float = Field(3e-4, gt=0)
    epochs: float | None = Field(None, gt=0)  # None: as many as the student's

    @model_validator(mode="after")
    def _one_source(self) -> Update:
        if self.adapter and self.base:
            raise ValueError("an adapter and a base are two updates; name one of them")
        if self.epochs and (self.adapter or self.base):
            raise ValueError("epochs are of a training, and this update is there already")
        return self


class Carry(Section):
    """The texts from which the maps between the two models' channels are made, and how much is injected."""

    texts: str | None = None  # FILE.jsonl of chats or FILE.txt, in place of training rows
    examples: int = Field(512, ge=1)  # of them, or of training rows, both question and answer
    tokens: int = Field(2048, ge=1)  # drawn from them; a quarter as many more are held out
    scales: Annotated[
        tuple[NonNegativeFloat, ...],
        BeforeValidator(lambda value: [value] if isinstance(value, int | float) else value),
    ] = Field(SCALES, min_length=1)  # of what is injected: that of least loss on validation rows is taken


class Finetune(Section):
    """The student's training: the published hyperparameters (Seeking Neural Nuggets) unless said otherwise."""

    examples: int = Field(1000, ge=1)
    epochs: float = Field(3, gt=0)
    batch_size: int = Field(64, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)  # what fits on the device at once; same result, less memory
    gradient_checkpointing: Literal["auto"] | bool = "auto"  # auto: where a trial would not fit otherwise; same result
    warmup: float = Field(0.03, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=0)  # longer gradients are cut down to this length; 0: none is
    dropout: float = Field(0.05, ge=0, lt=1)
    alpha: float | None = Field(None, gt=0)  # None: the rank, so that the scale is 1 at every rank of a sweep
    max_tokens: int = Field(2048, ge=2)
    dtype: Dtype = "auto"  # of the student, in its scoring too


class Evaluate(Section):
    """How a model is scored."""

    examples: int | None = Field(None, ge=1)  # None: the whole split
    engine: Literal["transformers", "vllm"] = "transformers"  # who writes the student's answers


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return ORIGINS if value == "all" else tuple(part.strip() for part in value.split(","))
    return value


class Recipe(Section):
    """One trial. In a settled one, `layers`, `structure` and `modules` are null where the arm extracts nothing."""

    teacher: str
    student: str
    task: TaskChoice = TaskChoice()
    measure: Measure = Measure()
    update: Update = Update()
    carry: Carry = Carry()
    arm: Arm = Transfer()
    layers: LayerSelection | None = Sensitivity()
    structure: BlockSelection | None = Window()
    modules: Annotated[tuple[Origin, ...] | None, BeforeValidator(_names)] = ORIGINS
    stored_rank: int = Field(64, ge=1)
    rank: int = Field(16, ge=1)
    lr: float = Field(3e-4, gt=0)
    seed: int = Field(0, ge=0)
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()

    @field_validator("modules")
    @classmethod
    def _modules(cls, value: tuple[Origin, ...] | None) -> tuple[Origin, ...] | None:
        if value == ():
            raise ValueError("name at least one of attention, ffn, embedding")
        return None if value is None else tuple(origin for origin in ORIGINS if origin in value)

    def of_teacher(self) -> Recipe:
        """The training that makes the update: plain LoRA of the teacher itself."""
        own = self.finetune.model_copy(update={"epochs": self.update.epochs or self.finetune.epochs})
        made = {"arm": Lora(), "rank": self.update.rank, "lr": self.update.lr, "finetune": own}
        return self.model_copy(update=made)

    def longer(self, theirs: int, own: int) -> float:
        """How many times as long as was asked for its arm trains, where teacher and student have so many weights."""
        return self.arm.longer(theirs * (self.update.epochs or self.finetune.epochs) / self.finetune.epochs, own)

    def settled(self) -> Recipe:
        """Without what means nothing for its arm, and with what its arm is: trials that do the same are the same."""
        carries = {*self.arm.needs} & {"teacher_update", "carried", "excess"}  # of no seed example
        reads = isinstance(self.arm, Carried) and self.arm.reads == "texts"
        scales = self.carry.scales if self.arm.injects else SCALES
        carry = (self.carry if reads else Carry()).model_copy(update={"scales": scales})
        unused: dict[str, Any] = {"carry": carry}
        if not self.arm.takes_update:
            unused["update"] = Update(epochs=self.update.epochs if self.arm.outlasts else None)
        if not self.arm.extracts:
            unused |= dict.fromkeys(("layers", "structure", "modules"))
            alike = isinstance(self.arm, Carried) and isinstance(self.arm.layers, ALIKE)
            asks = {*self.arm.needs} - carries or alike  # for as long as sensitivities would take, or the same examples
            unused |= {"stored_rank": 64, "measure": self.measure if asks else Measure()}
            return self.model_copy(update=unused)
        fields = self.model_copy(update=unused).model_dump(mode="json", exclude_none=True)
        for section, fixed in self.arm.fixes(self.seed).items():
            fields[section] = {**({} if "kind" in fixed else fields[section]), **fixed}
        return Recipe.model_validate(fields)


class Grid(Section):
    """Every combination of the axes is a row, and tries every learning rate."""

    kind: Literal["grid"] = "grid"


class Sampled(Section):
    """A search in which each arm tries as many settings as every other, and the best of them is its one row.

    A setting is a combination of the axes with one of RATES learning rates between the lowest and the highest of `lr`.
    """

    settings: int = Field(8, ge=2)  # for each arm, where the sweep's `trials` doesn't say how many fit
    seed: int = Field(0, ge=0)


class Random(Sampled):
    """Settings at random, none twice."""

    kind: Literal["random"] = "random"


class Optuna(Sampled):
    """Settings that a tree-structured Parzen estimator proposes from those before (optuna)."""

    kind: Literal["optuna"] = "optuna"


class Asha(Sampled):
    """Random settings, of which the worse ones end early, after 1/9 or 1/3 of the training (ASHA, arXiv 1810.05934)."""

    kind: Literal["asha"] = "asha"
    reduction: int = Field(3, ge=2)  # one in so many goes on
    rungs: int = Field(3, ge=2, le=5)


Search = Annotated[
    Annotated[Grid | Random | Optuna | Asha, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


def _each_once(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(values))


class Sweep(Section):
    """A recipe and what varies around it.

    `axes` maps a recipe's field (dotted for a nested one) to its values. `lr` is the grid from which each
    leaderboard row takes its own learning rate, on the validation split; a single value is used as it is.
    """

    name: str | None = Field(None, pattern=r"^\w[\w.-]*$")  # it names a folder
    recipe: Recipe
    axes: dict[str, tuple[Any, ...]] = {}
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(_each_once)] = Field(
        (1e-4, 3e-4, 1e-3), min_length=1
    )
    search: Search = Grid()
    trials: int | None = Field(
        None, ge=1
    )  # fine-tunings in all, those of the comparison too; None: what `search` takes
    tuning_seeds: int = Field(1, ge=1)  # trainings by which a setting is judged on the validation split
    repeats: int = Field(6, ge=1)  # random seeds of each row on the test split; fewer than six can't carry a claim
    effect: float | None = Field(
        None, gt=0, le=1
    )  # the smallest difference that would matter: the plan says if it can show
    baseline: str = "lora"
    tasks: tuple[TaskChoice, ...] = ()  # scored beside the one that is trained: what the training costs elsewhere
    margin: float = Field(0.02, gt=0)  # of a score: what counts as none there
    tuned_teacher: bool = False  # fine-tune the teacher on the task, too: its row is the gate's
    gate: float | None = Field(None, ge=0, le=1)  # the least score at which the teacher counts as knowing the task
    max_trials: int = Field(48, ge=1)
    portable: bool = False  # by kernels that all x86-64 CPUs with AVX2 have: the same bits on each, at 2/3 of the speed


def one_line(error: ValidationError) -> str:
    """A recipe's first fault as "field: value: why", for people."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"]) or "recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    context = first.get("ctx", {})
    if first["type"] == "union_tag_invalid":
        known = context["expected_tags"].replace("'", "")
        return f"{path}: {context['tag']!r} is not known; known: {known}{more}"
    if first["type"] == "union_tag_not_found":
        return f"{path}: {first['input']!r} doesn't say which kind; write it as {{kind: ..., ...}} in YAML{more}"
    if first["type"] == "extra_forbidden":
        return f"{path}: there is no such field; `pkt strategies` lists the fields{more}"
    if first["type"] == "missing":
        return f"{path}: is needed and was not given{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {first['input']!r}: {message[0].lower()}{message[1:]}{more}"
