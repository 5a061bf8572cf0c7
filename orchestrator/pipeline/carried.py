"""From the teacher's update to what a student is given of it: each step shared by all trials that agree on it."""

from __future__ import annotations

from typing import Any, get_args

from orchestrator.carry.carry import carry
from orchestrator.carry.inputs import inputs
from orchestrator.carry.pairs import pairs
from orchestrator.carry.scale import SCALES, scale
from orchestrator.carry.twin import twin
from orchestrator.carry.update import adapter, difference
from orchestrator.pipeline.asked import dtype_of, states_step
from orchestrator.prepare.ready import Ready, Who
from orchestrator.prepare.rows import template_of, used_rows
from orchestrator.recipe import Recipe
from orchestrator.step import Step
from orchestrator.tasks.base import draw
from orchestrator.tasks.rows import data_step


def given_update(recipe: Recipe, ready: Ready, folder: str, contents: str) -> Step:
    """A LoRA of the teacher, or its difference from the checkpoint that it was trained from."""
    if recipe.update.adapter:
        return Step(
            "update", adapter, {}, {}, {"adapter": contents}, {"adapter": folder, "teacher": ready.teacher.folder}
        )
    return Step(
        "update", difference, {"rank": recipe.update.rank}, {}, {"tuned": ready.teacher.sha256, "base": contents},
        {"tuned": ready.teacher.folder, "base": folder}, needs="ranks",
    )  # fmt: skip


def carry_step(recipe: Recipe, ready: Ready, update: Step) -> Step:
    """The update in the student's channels, by the arm's maps; of a twin, without what the maps know."""
    arm: Any = recipe.arm
    both = {"teacher": ready.teacher.sha256, "student": ready.student.sha256}
    folders = {"teacher": ready.teacher.folder, "student": ready.student.folder}
    where = folders | {"student_name": ready.student.name}
    seen = _read(recipe, ready) if arm.reads == "texts" else {}
    if arm.layers.kind == "cka":
        seen |= {f"{who}_states": states_step(recipe, ready, who) for who in get_args(Who)}

    def carried(*, shuffled: bool) -> Step:
        config = {"arm": arm.carrying(), "shuffled": shuffled}
        return Step("carry", carry, config, {"update": update, **seen}, both, where, needs="ranks")

    own = carried(shuffled=False)
    if not arm.twin:
        return own
    source = carried(shuffled=True) if arm.twin == "shuffled_texts" else update
    config = {"which": arm.twin, "seed": 0 if arm.twin == "shuffled_texts" else recipe.seed}
    return Step("twin", twin, config, {"carried": own, "source": source}, both, where)


def _read(recipe: Recipe, ready: Ready) -> dict[str, Step]:
    """The drawn tokens of training rows, and what each model has at them."""
    texts = data_step(draw(ready.splits["train"], recipe.carry.examples))
    config = {"template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens}
    drawn = Step(
        "pairs", pairs, config | {"tokens": recipe.carry.tokens}, {"texts": texts},
        {"teacher": ready.teacher.sha256, "student": ready.student.sha256},
        {"teacher": ready.teacher.folder, "student": ready.student.folder},
    )  # fmt: skip
    found = {"pairs": drawn}
    for side, who in enumerate(get_args(Who)):
        model, more = ready.checkpoint(who), {"side": side, "dtype": dtype_of(recipe, ready, who)}
        found[f"of_{who}"] = Step(
            "inputs", inputs, config | more, {"pairs": drawn, "texts": texts},
            {"model": model.sha256}, {"model": model.folder}, needs="ranks",
        )  # fmt: skip
    return found


def carried_step(recipe: Recipe, ready: Ready, update: Step) -> Step:
    """The carried update as the student is given it: where it is injected, at the scale that validation rows choose."""
    carried = carry_step(recipe, ready, update)
    if recipe.arm.cancels:
        return carried
    return Step(
        "scale", scale, needs="model",
        config={
            "template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens,
            "dtype": dtype_of(recipe, ready, "student"), "scales": SCALES, "rank": recipe.rank,
        },
        inputs={"carried": carried, "rows": data_step(used_rows(recipe, ready.splits, "validation"))},
        identity={"model": ready.student.sha256}, where={"model": ready.student.folder},
    )  # fmt: skip
