"""One recipe → its steps.

ready = prepare(recipe)                       # finds and checks everything; computes and writes nothing
step = trial(recipe, ready, "test")           # evaluate <- finetune <- extract <- measure
folder = materialise(step, Store("pkt-store"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.pipeline import carried
from orchestrator.pipeline.asked import (
    activations_step,
    aligned_step,
    dtype_of,
    excess_step,
    extract_step,
    labels_step,
    measure_step,
    states_step,
)
from orchestrator.prepare.ready import Ready, Who
from orchestrator.prepare.rows import template_of, used_rows
from orchestrator.recipe import Recipe
from orchestrator.scoring.evaluate import evaluate
from orchestrator.scoring.preference import ASKED
from orchestrator.step import Step
from orchestrator.student.finetune import finetune
from orchestrator.tasks.base import Split, Task
from orchestrator.tasks.rows import data_step
from orchestrator.teacher.teacher_score import teacher_score
from orchestrator.transfer.arms import Need

__all__ = ["activations_step", "extract_step", "labels_step", "measure_step", "states_step"]


def update_step(recipe: Recipe, ready: Ready) -> Step:
    """What training changed of the teacher: its own on the task by plain LoRA, or what was made elsewhere."""
    if ready.update:
        return carried.given_update(recipe, ready, *ready.update)
    return finetune_step(recipe.of_teacher().model_copy(update={"seed": 0}), ready, "teacher")


def carry_step(recipe: Recipe, ready: Ready) -> Step:
    """The teacher's update in the student's channels."""
    return carried.carry_step(recipe, ready, _taken(recipe, ready))


def carried_step(recipe: Recipe, ready: Ready) -> Step:
    """The same as a student is given it."""
    return carried.carried_step(recipe, ready, _taken(recipe, ready))


def _taken(recipe: Recipe, ready: Ready) -> Step | None:
    return update_step(recipe, ready) if recipe.arm.takes_update else None


def given_step(recipe: Recipe, ready: Ready) -> Step | None:
    """The adapter that a student has before any step, where that does anything."""
    return carried_step(recipe, ready) if recipe.arm.injects else None


def _labels_step(recipe: Recipe, ready: Ready) -> Step:
    return labels_step(recipe, ready, _taken(recipe, ready))


def _excess_step(recipe: Recipe, ready: Ready) -> Step:
    return excess_step(recipe, ready, update_step(recipe, ready))


GIVEN: dict[Need, Callable[[Recipe, Ready], Step]] = {
    "factors": extract_step,
    "labels": _labels_step,
    "teacher_states": partial(states_step, who="teacher"),
    "student_states": partial(states_step, who="student"),
    "teacher_update": update_step,
    "carried": carried_step,
    "excess": _excess_step,
    "aligned_states": aligned_step,
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
            "epochs": part.epochs * recipe.longer(ready.teacher.geometry.weights, ready.student.geometry.weights),
            "dtype": dtype_of(recipe, ready, who),
        },
        inputs=inputs,
        identity={"student": trained.sha256},
        where={
            "student": trained.folder, "names": names,
            "gradient_checkpointing": ready.recomputed(part.gradient_checkpointing, who),
        },
    )  # fmt: skip


def evaluate_step(
    recipe: Recipe,
    ready: Ready,
    split: Split,
    who: Who = "student",
    adapter: Step | None = None,
    beside: str | None = None,
    *,
    shared: bool = False,
) -> Step:
    """The score of a model as it is, or with an adapter, on a split; or on the task `beside` that isn't trained.

    Of the teacher by ranks, as it may be too large for a device: as it is, and with an adapter that is `shared`, as its
    update is. One that is only tried is scored where it was trained.

    What an edit leaves alone is told against the untouched model: its evaluation, one for all adapters, comes first.
    """
    task, rows = ready.beside[beside] if beside else (ready.task, used_rows(recipe, ready.splits, split))
    inputs = {"rows": data_step(rows)} | ({"adapter": adapter} if adapter else {})
    if adapter and task.metric.kind == "edit_success":
        inputs["untouched"] = evaluate_step(recipe, ready, split, who, beside=beside)
    scored = ready.checkpoint(who)
    own = who == "teacher" and (adapter is None or shared)
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
            "dtype": dtype_of(recipe, ready, who),
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
