"""One recipe → its steps.

ready = prepare(recipe)                       # finds and checks everything; computes and writes nothing
step = trial(recipe, ready, "test")           # evaluate <- finetune <- extract <- measure
folder = materialise(step, Store("pkt-store"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from orchestrator.models.families import FAMILIES, pairs
from orchestrator.prepare.ready import Ready, Who
from orchestrator.prepare.rows import template_of, used_rows
from orchestrator.recipe import Recipe
from orchestrator.scoring.evaluate import evaluate
from orchestrator.scoring.preference import ASKED
from orchestrator.step import Step
from orchestrator.student.finetune import finetune
from orchestrator.tasks.base import Split, Task
from orchestrator.tasks.rows import data_step
from orchestrator.teacher.activations import activations
from orchestrator.teacher.extract import extract
from orchestrator.teacher.labels import FORWARDS_OF_A_PASS, labels
from orchestrator.teacher.measure import measure
from orchestrator.teacher.scale import Scale, scale_of
from orchestrator.teacher.states import states
from orchestrator.teacher.teacher_score import teacher_score
from orchestrator.transfer.arms import Lora, Need
from orchestrator.transfer.metrics import Magnitude, Wanda


def measure_step(recipe: Recipe, ready: Ready) -> Step:
    """The teacher's sensitivities: shared by every trial with these seed examples."""
    seeds = ready.seeds_for(recipe)
    if recipe.measure.shuffled:
        seeds = [one.answered_as(other) for one, other in zip(seeds, seeds[1:] + seeds[:1], strict=True)]
    return Step(
        "measure",
        measure,
        needs="ranks",
        config={
            "template": template_of(recipe, ready.task),
            "max_tokens": recipe.measure.max_tokens,
            "metric": recipe.measure.metric.model_dump(mode="json"),
            "granularity": _scale(recipe, ready).granularity,
            "dtype": ready.dtype("teacher", recipe.measure.dtype),
            "skip_bad": recipe.measure.skip_bad_examples,
        },
        inputs={"seeds": data_step(seeds)},
        identity={"teacher": ready.teacher.sha256},
        where={"teacher": ready.teacher.folder},
    )


def activations_step(recipe: Recipe, ready: Ready) -> Step:
    """The second pass, for exact windows of a teacher whose every weight's score has no room on a rank.

    It records each matrix's inputs and output gradients, in the layers that the first pass chose; extraction forms the
    scores from them.
    """
    assert recipe.layers and recipe.modules
    measured = measure_step(recipe, ready)
    family, student = FAMILIES[ready.teacher.config.model_type], ready.student.geometry
    roles = [role for origin in recipe.modules if origin != "embedding" for role in student.roles(origin)]
    passed = ("template", "max_tokens", "dtype", "skip_bad")
    return Step(
        "activations",
        activations,
        needs="ranks",
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
    """The teacher's blocks and their factors, shared by every trial with these layers, structure and modules.

    They are factorised at the recipe's stored rank, of which smaller ranks take a part; or at just this `rank`.
    """
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
        needs="ranks",
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
    arm: Any = recipe.arm
    measured = measure_step(recipe, ready)
    points = len(recipe.measure.metric.points()) if hasattr(recipe.measure.metric, "points") else 1
    return Step(
        "labels",
        labels,
        needs="ranks",
        config={
            "template": template_of(recipe, ready.task),
            "max_tokens": recipe.finetune.max_tokens,
            "seed_tokens": recipe.measure.max_tokens,
            "dtype": ready.dtype("teacher", recipe.measure.dtype),
            "temperature": arm.temperature,
            "passes": FORWARDS_OF_A_PASS * points if arm.rows == "equal" else None,
        },
        inputs={
            "rows": data_step(used_rows(recipe, ready.splits, "train")),
            "seeds": measured.inputs["seeds"],
        },
        identity=measured.identity,
        where=measured.where,
    )


def states_step(recipe: Recipe, ready: Ready, who: Who) -> Step:
    """The hidden states from which one of the two models begins to answer each seed example: shared by every trial."""
    return Step(
        "states",
        states,
        needs="ranks",
        config={
            "template": template_of(recipe, ready.task),
            "max_tokens": recipe.measure.max_tokens,
            "dtype": _dtype(recipe, ready, who),
        },
        inputs={"seeds": data_step(ready.seeds_for(recipe))},
        identity={"model": ready.checkpoint(who).sha256},
        where={"model": ready.checkpoint(who).folder},
    )


def update_step(recipe: Recipe, ready: Ready) -> Step:
    """The teacher's own training on the task, by plain LoRA at a trial's rank and learning rate: one for all seeds."""
    return finetune_step(recipe.model_copy(update={"arm": Lora(), "seed": 0}), ready, "teacher")


GIVEN: dict[Need, Callable[[Recipe, Ready], Step]] = {
    "factors": extract_step,
    "labels": labels_step,
    "teacher_states": partial(states_step, who="teacher"),
    "student_states": partial(states_step, who="student"),
    "teacher_update": update_step,
}


def finetune_step(recipe: Recipe, ready: Ready, who: Who = "student", shares: Sequence[float] = (1.0,)) -> Step:
    """The training of one trial; with `who` "teacher", of the teacher itself, as the most that could be handed over.

    It ends after the last of `shares` (of 1, the whole training). Where there are several, as ASHA's rungs have it, it
    goes on from the training that ended after the share before.
    """
    part, trained = recipe.finetune, ready.checkpoint(who)
    inputs = {"rows": data_step(used_rows(recipe, ready.splits, "train"))}
    inputs |= {need: GIVEN[need](recipe, ready) for need in recipe.arm.needs}
    if len(shares) > 1:
        inputs["before"] = finetune_step(recipe, ready, who, shares[:-1])
    names = {"student": trained.name, "task": ready.task.name}
    if recipe.arm.needs:
        names["teacher"] = ready.teacher.name
    return Step(
        "finetune",
        finetune,
        needs="group",
        config={
            "arm": recipe.arm.model_dump(mode="json"),
            "rank": recipe.rank,
            "alpha": part.alpha or float(recipe.rank),
            "lr": recipe.lr,
            "seed": recipe.seed,
            "until": shares[-1],
            "template": template_of(recipe, ready.task),
            **part.model_dump(exclude={"examples", "alpha", "dtype", "gradient_checkpointing"}),
            "dtype": _dtype(recipe, ready, who),
        },
        inputs=inputs,
        identity={"student": trained.sha256},
        where={
            "student": trained.folder, "names": names,
            "gradient_checkpointing": ready.recomputed(part.gradient_checkpointing),
        },
    )  # fmt: skip


def evaluate_step(
    recipe: Recipe,
    ready: Ready,
    split: Split,
    who: Who = "student",
    adapter: Step | None = None,
    beside: str | None = None,
) -> Step:
    """The score of a model as it is, or with an adapter, on a split; or on the task `beside` that isn't trained.

    What an edit leaves alone is told against the untouched model: its evaluation, one for all adapters, comes first.
    """
    task, rows = ready.beside[beside] if beside else (ready.task, used_rows(recipe, ready.splits, split))
    inputs = {"rows": data_step(rows)} | ({"adapter": adapter} if adapter else {})
    if adapter and task.metric.kind == "edit_success":
        inputs["untouched"] = evaluate_step(recipe, ready, split, who, beside=beside)
    scored = ready.checkpoint(who)
    own = who == "teacher" and adapter is None
    judge, at = _judge(task, ready)
    return Step(
        "evaluate",
        teacher_score if own else evaluate,
        needs="ranks" if own else "model",
        config={
            "template": template_of(recipe, task),
            "metric": task.metric.as_json(),
            "choices": list(task.choices),
            **({"judge": judge} if judge else {}),
            **({"engine": "vllm"} if recipe.evaluate.engine == "vllm" and task.metric.writes and not own else {}),
            "dtype": _dtype(recipe, ready, who),
        },
        inputs=inputs,
        identity={"model": scored.sha256},
        where={"model": scored.folder} | ({"judge_at": at} if judge else {}),
    )


def _judge(task: Task, ready: Ready) -> tuple[dict[str, str], str]:
    """What a task's judgments depend on, and where the judge is; nothing where nobody judges."""
    if not task.judge:
        return {}, ""
    at, model = task.judge
    if at:
        return {"model": model, "asked": ASKED}, at
    found, dtype = ready.judges[model]
    return {"model": found.sha256, "dtype": dtype, "asked": ASKED}, found.folder


def trial(recipe: Recipe, ready: Ready, split: Split) -> Step:
    """One trial, from its score back to the teacher's pass: each step has those that it builds on as inputs."""
    return evaluate_step(recipe, ready, split, adapter=finetune_step(recipe, ready))


def _dtype(recipe: Recipe, ready: Ready, who: Who) -> str:
    """The number type in which a model is trained and scored; the teacher's is the same in every step."""
    return ready.dtype(who, recipe.finetune.dtype) if who == "student" else ready.dtype(who)
