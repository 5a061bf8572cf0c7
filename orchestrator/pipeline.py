"""One recipe → its steps.

ready = prepare(recipe)                       # finds and checks everything; computes and writes nothing
step = trial(recipe, ready, "test")           # evaluate <- finetune <- extract <- measure
folder = materialise(step, Store("pkt-store"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import UserError
from orchestrator.models.families import FAMILIES, ORIGINS, pairs
from orchestrator.models.loading import Checkpoint, load_tokenizer, resolve, source_of, tokens_of
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.scale import Scale, check_given, check_structure, scale_of, tiled_sizes
from orchestrator.steps.activations import activations
from orchestrator.steps.data import data_step
from orchestrator.steps.evaluate import evaluate, questions
from orchestrator.steps.extract import extract
from orchestrator.steps.finetune import finetune
from orchestrator.steps.labels import FORWARDS_OF_A_PASS, labels
from orchestrator.steps.measure import measure
from orchestrator.steps.step import Step
from orchestrator.tasks import TASKS, Task, chat_task
from orchestrator.tasks.base import Example, Split, draw, read_jsonl
from orchestrator.tasks.scoring import check as check_items
from orchestrator.tasks.template import encode
from orchestrator.transfer.arms import Distil
from orchestrator.transfer.given import Given
from orchestrator.transfer.metrics import Magnitude, Wanda

Who = Literal["teacher", "student"]


@dataclass(frozen=True)
class Ready:
    """What a recipe refers to, found and checked."""

    teacher: Checkpoint
    student: Checkpoint
    task: Task
    splits: dict[Split, list[Example]]

    def checkpoint(self, who: Who) -> Checkpoint:
        """The teacher's or the student's."""
        return self.teacher if who == "teacher" else self.student


def prepare(recipe: Recipe) -> Ready:
    """Find models and rows and check all that can be checked before work starts. UserError for the first fault."""
    for field, name in (("teacher", recipe.teacher), ("student", recipe.student)):
        source_of(name, field)  # a misspelt name is told before anything is fetched
    task, splits = find_task(recipe.task)
    if recipe.measure.seeds:
        splits["seed"] = [task.adapt(example) for example in read_jsonl(Path(recipe.measure.seeds).expanduser())]
    teacher, student = resolve(recipe.teacher, "teacher"), resolve(recipe.student, "student")
    template, tokenizer = recipe.task.template, load_tokenizer(teacher.folder, "teacher")
    for example in draw(splits["seed"], recipe.measure.examples):
        encode(example, template, tokenizer, recipe.measure.max_tokens)
    tokenizer = load_tokenizer(student.folder, "student")
    for example in draw(splits["train"], recipe.finetune.examples):
        encode(example, template, tokenizer, recipe.finetune.max_tokens)
    for split in ("validation", "test"):
        rows = scored_rows(recipe, splits[split])
        items, metric = questions(rows, template, tokenizer, task.metric, task.choices)
        check_items(items, metric, tokenizer, student.config.max_position_embeddings)
    return Ready(teacher, student, task, splits)


def scored_rows(recipe: Recipe, rows: list[Example]) -> list[Example]:
    """The rows of a split that an evaluation takes."""
    return draw(rows, recipe.evaluate.examples) if recipe.evaluate.examples else rows


def find_task(choice: TaskChoice) -> tuple[Task, dict[Split, list[Example]]]:
    """A known task, or a chat JSONL by its path. UserError with the known names for anything else."""
    if choice.name in TASKS:
        task = TASKS[choice.name]
        return task, task.splits(choice.data)
    path = Path(choice.name).expanduser()
    if path.suffix == ".jsonl" or path.is_file():
        return chat_task(path)
    raise UserError(f"task: {choice.name!r} is not known; known: {', '.join(TASKS)}, or a FILE.jsonl of chats")


def check(recipe: Recipe, ready: Ready) -> None:
    """Whether this trial can be done with these models. UserError names the field, the value and the remedy."""
    student = ready.student.geometry
    sides = {role: min(student.shape(role)) for origin in ORIGINS for role in student.roles(origin)}
    role, side = min(sides.items(), key=lambda item: item[1])
    if recipe.rank > side:
        n, m = student.shape(role)
        raise UserError(
            f"rank: {recipe.rank} is larger than the student's {role} matrix, {n} x {m}; take at most {side}"
        )
    try:
        recipe.arm.check(recipe.rank, side)
    except ValueError as error:
        raise UserError(str(error)) from error
    part = recipe.finetune
    if part.micro_batch_size and part.batch_size % part.micro_batch_size:
        raise UserError(
            f"finetune.micro_batch_size: {part.micro_batch_size} doesn't divide the batch size {part.batch_size}"
        )
    if isinstance(recipe.arm, Distil):
        vocabularies = [load_tokenizer(one.folder).get_vocab() for one in (ready.teacher, ready.student)]
        if vocabularies[0] != vocabularies[1]:
            raise UserError(
                f"arm: distil needs one vocabulary, and {ready.teacher.name} and {ready.student.name} have two;"
                " leave it out of --arms"
            )
    if recipe.layers is None:
        return
    teacher = ready.teacher.geometry
    list(pairs(teacher, student, recipe.modules or ()))
    try:
        recipe.layers.select([0.0] * teacher.layers, student.layers)
    except ValueError as error:
        raise UserError(str(error)) from error
    scale = scale_of(recipe.measure, teacher, student)
    g = scale.granularity
    if uneven := [size for size in tiled_sizes(teacher, student) if size % g]:
        raise UserError(f"measure.granularity: {g} doesn't divide {uneven[0]}, a size of the models; 1 always does")
    if recipe.structure:
        family = FAMILIES[ready.teacher.config.model_type]
        check_structure(recipe.structure.kind, scale, family, teacher, student, recipe.modules or ())
    if isinstance(recipe.structure, Given):
        check_given(recipe.structure, teacher, student, recipe.modules or ())
    if "embedding" in (recipe.modules or ()):
        tokens = tokens_of(Path(ready.teacher.folder), Path(ready.student.folder))
        if (shared := int((tokens >= 0).sum())) < len(tokens) / 2:
            raise UserError(
                f"modules: embedding needs tokens that both have, and of {ready.student.name}'s {len(tokens)}"
                f" {ready.teacher.name} has {shared}; leave it out with --modules attention,ffn"
            )


def measure_step(recipe: Recipe, ready: Ready) -> Step:
    """The teacher's pass: shared by every trial with these seeds."""
    seeds = draw(ready.splits["seed"], recipe.measure.examples)
    if recipe.measure.shuffled:
        seeds = [one.answered_as(other) for one, other in zip(seeds, seeds[1:] + seeds[:1], strict=True)]
    return Step(
        "measure",
        measure,
        config={
            "template": recipe.task.template,
            "max_tokens": recipe.measure.max_tokens,
            "metric": recipe.measure.metric.model_dump(mode="json"),
            "granularity": _scale(recipe, ready).granularity,
            "dtype": recipe.measure.dtype,
            "skip_bad": recipe.measure.skip_bad_examples,
        },
        inputs={"seeds": data_step(seeds)},
        identity={"teacher": ready.teacher.sha256},
        where={"teacher": ready.teacher.folder},
    )


def activations_step(recipe: Recipe, ready: Ready) -> Step:
    """The second pass, where exact scores have no room in the first: what the kept layers' scores are made of."""
    assert recipe.layers and recipe.modules
    measured = measure_step(recipe, ready)
    family, student = FAMILIES[ready.teacher.config.model_type], ready.student.geometry
    roles = [role for origin in recipe.modules if origin != "embedding" for role in student.roles(origin)]
    passed = ("template", "max_tokens", "dtype", "skip_bad")
    return Step(
        "activations",
        activations,
        config={name: measured.config[name] for name in passed}
        | {
            "layers": recipe.layers.model_dump(mode="json"),
            "count": student.layers,
            "matrices": sorted({family.template(role) for role in roles}),
        },
        inputs={"measured": measured, "seeds": measured.inputs["seeds"]},
        identity=measured.identity,
        where=measured.where,
    )


def _scale(recipe: Recipe, ready: Ready) -> Scale:
    return scale_of(recipe.measure, ready.teacher.geometry, ready.student.geometry)


def extract_step(recipe: Recipe, ready: Ready, rank: int | None = None) -> Step:
    """The factors at the stored rank, which every smaller rank of a sweep shares; or at just this `rank`."""
    assert recipe.layers and recipe.structure and recipe.modules
    student = ready.student.geometry
    smallest = min(min(pair.student) for pair in pairs(ready.teacher.geometry, student, recipe.modules))
    exact = _scale(recipe, ready).exact
    inputs = {"measured": measure_step(recipe, ready)}
    if exact and not isinstance(recipe.measure.metric, Magnitude | Wanda) and recipe.modules != ("embedding",):
        inputs["recorded"] = activations_step(recipe, ready)
    return Step(
        "extract",
        extract,
        config={
            "layers": recipe.layers.model_dump(mode="json"),
            "structure": recipe.structure.model_dump(mode="json"),
            "modules": list(recipe.modules),
            "rank": rank or min(smallest, max(recipe.stored_rank, recipe.rank)),
            "metric": recipe.measure.metric.model_dump(mode="json"),
            "exact": exact,
        },
        inputs=inputs,
        identity={"teacher": ready.teacher.sha256, "student": ready.student.sha256},
        where={
            "teacher": ready.teacher.folder, "student": ready.student.folder, "student_name": ready.student.name,
        },
    )  # fmt: skip


def labels_step(recipe: Recipe, ready: Ready) -> Step:
    """The teacher's predictions on training rows, shared by every trial that distils at this temperature."""
    assert isinstance(recipe.arm, Distil)
    measured = measure_step(recipe, ready)
    points = len(recipe.measure.metric.points()) if hasattr(recipe.measure.metric, "points") else 1
    return Step(
        "labels",
        labels,
        config={
            "template": recipe.task.template,
            "max_tokens": recipe.finetune.max_tokens,
            "dtype": recipe.measure.dtype,
            "temperature": recipe.arm.temperature,
            "passes": FORWARDS_OF_A_PASS * points if recipe.arm.rows == "equal" else None,
        },
        inputs={
            "rows": data_step(draw(ready.splits["train"], recipe.finetune.examples)),
            "seeds": measured.inputs["seeds"],
        },
        identity=measured.identity,
        where=measured.where,
    )


def finetune_step(recipe: Recipe, ready: Ready, who: Who = "student", shares: Sequence[float] = (1.0,)) -> Step:
    """The training of one trial; of the teacher itself, where the teacher's own reach on the task is asked for.

    It ends after the last of `shares` of its steps, and goes on from where the one before ended.
    """
    part, trained = recipe.finetune, ready.checkpoint(who)
    rows = draw(ready.splits["train"], part.examples)
    inputs = {"rows": data_step(rows)}
    if recipe.arm.extracts:
        inputs["start"] = extract_step(recipe, ready)
    if isinstance(recipe.arm, Distil):
        inputs["labels"] = labels_step(recipe, ready)
    if len(shares) > 1:
        inputs["before"] = finetune_step(recipe, ready, who, shares[:-1])
    names = {"student": trained.name, "task": ready.task.name}
    if recipe.arm.extracts:
        names["teacher"] = ready.teacher.name
    return Step(
        "finetune",
        finetune,
        config={
            "arm": recipe.arm.model_dump(mode="json"),
            "rank": recipe.rank,
            "alpha": part.alpha or float(recipe.rank),
            "lr": recipe.lr,
            "seed": recipe.seed,
            "until": shares[-1],
            "template": recipe.task.template,
            **part.model_dump(exclude={"examples", "alpha"}),
        },
        inputs=inputs,
        identity={"student": trained.sha256},
        where={"student": trained.folder, "names": names},
    )


def evaluate_step(
    recipe: Recipe, ready: Ready, split: Split, who: Who = "student", adapter: Step | None = None
) -> Step:
    """The score of a model as it is, or with an adapter, on a split."""
    rows, scored = scored_rows(recipe, ready.splits[split]), ready.checkpoint(who)
    return Step(
        "evaluate",
        evaluate,
        config={
            "template": recipe.task.template,
            "metric": _listed(asdict(ready.task.metric)),
            "choices": list(ready.task.choices),
            "batch_size": recipe.evaluate.batch_size,
            "max_tokens": recipe.finetune.max_tokens,
            "dtype": recipe.finetune.dtype,
        },
        inputs={"rows": data_step(rows)} | ({"adapter": adapter} if adapter else {}),
        identity={"model": scored.sha256},
        where={"model": scored.folder},
    )


def trial(recipe: Recipe, ready: Ready, split: Split) -> Step:
    """The whole way of one trial: its score on a split."""
    return evaluate_step(recipe, ready, split, adapter=finetune_step(recipe, ready))


def _listed(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
