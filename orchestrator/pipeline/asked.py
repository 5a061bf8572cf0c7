"""What the two models are asked for all of a sweep's trials."""

from __future__ import annotations

from typing import Any

from orchestrator.carry.excess import excess
from orchestrator.carry.semantics import aligned_states
from orchestrator.models.families import FAMILIES, pairs
from orchestrator.prepare.ready import Ready, Who
from orchestrator.prepare.rows import template_of, used_rows
from orchestrator.recipe import Recipe
from orchestrator.step import Step
from orchestrator.tasks.rows import data_step
from orchestrator.teacher.activations import activations
from orchestrator.teacher.extract import extract
from orchestrator.teacher.labels import FORWARDS_OF_A_PASS, labels
from orchestrator.teacher.measure import measure
from orchestrator.teacher.scale import Scale, scale_of
from orchestrator.teacher.states import states
from orchestrator.transfer.arms import Distil
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


def labels_step(recipe: Recipe, ready: Ready, update: Step | None = None) -> Step:
    """The teacher's predictions on training rows, with its update or without, shared by every trial that distils at
    this temperature."""
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
        }
        | ({"update": update} if update else {}),
        identity=measured.identity,
        where=measured.where,
    )


def excess_step(recipe: Recipe, ready: Ready, update: Step) -> Step:
    """How much surer the teacher's update makes it of each answer token of the training rows."""
    return Step(
        "excess", excess, needs="ranks",
        config={
            "template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens,
            "dtype": dtype_of(recipe, ready, "teacher"),
        },
        inputs={"update": update, "rows": data_step(used_rows(recipe, ready.splits, "train"))},
        identity={"teacher": ready.teacher.sha256}, where={"teacher": ready.teacher.folder},
    )  # fmt: skip


def aligned_step(recipe: Recipe, ready: Ready) -> Step:
    """Where the teacher is at the answer tokens of training rows, in the student's channels."""
    arm: Any = recipe.arm
    asked = labels_step(recipe.model_copy(update={"arm": Distil(rows=arm.rows)}), ready)
    config = {name: value for name, value in asked.config.items() if name != "temperature"}
    config["layer"] = arm.source(ready.teacher.geometry.layers, ready.student.geometry.layers)
    config["shuffled"] = recipe.seed if arm.random_map else None
    return Step(
        "aligned_states", aligned_states, config, asked.inputs,
        {"teacher": ready.teacher.sha256, "student": ready.student.sha256},
        {"teacher": ready.teacher.folder, "student": ready.student.folder}, needs="ranks",
    )  # fmt: skip


def states_step(recipe: Recipe, ready: Ready, who: Who) -> Step:
    """The hidden states from which one of the two models begins to answer each seed example: shared by every trial."""
    return Step(
        "states",
        states,
        needs="ranks",
        config={
            "template": template_of(recipe, ready.task),
            "max_tokens": recipe.measure.max_tokens,
            "dtype": dtype_of(recipe, ready, who),
        },
        inputs={"seeds": data_step(ready.seeds_for(recipe))},
        identity={"model": ready.checkpoint(who).sha256},
        where={"model": ready.checkpoint(who).folder},
    )


def dtype_of(recipe: Recipe, ready: Ready, who: Who) -> str:
    """The number type in which a model is trained and scored; the teacher's is the same in every step."""
    return ready.dtype(who, recipe.finetune.dtype) if who == "student" else ready.dtype(who)
