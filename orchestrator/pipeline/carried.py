"""From the teacher's update to what a student is given of it: each step shared by all trials that agree on it."""

from __future__ import annotations

from typing import Any, get_args

from orchestrator.carry.carry import carry
from orchestrator.carry.inputs import inputs
from orchestrator.carry.merge import merge
from orchestrator.carry.neurons import answers, laten
from orchestrator.carry.pairs import pairs
from orchestrator.carry.scale import as_scaled, scale
from orchestrator.carry.twin import twin
from orchestrator.carry.update import adapter, difference
from orchestrator.pipeline.asked import dtype_of, states_step
from orchestrator.prepare.ready import Ready, Who
from orchestrator.prepare.rows import template_of, texts_of, used_rows
from orchestrator.recipe import Recipe
from orchestrator.step import Step
from orchestrator.tasks.base import draw
from orchestrator.tasks.rows import data_step
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import ALIKE
from orchestrator.transfer.arms.laten import Laten
from orchestrator.transfer.arms.merged import Merged


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


def carry_step(recipe: Recipe, ready: Ready, update: Step | None) -> Step:
    """The update in the student's channels, by the arm's maps; of a twin, without what the maps know."""
    arm: Any = recipe.arm
    both = {"teacher": ready.teacher.sha256, "student": ready.student.sha256}
    folders = {"teacher": ready.teacher.folder, "student": ready.student.folder}
    where = folders | {"student_name": ready.student.name}
    seen = _read(recipe, ready) if arm.reads == "texts" else {}
    if isinstance(arm.layers, ALIKE):
        seen |= {f"{who}_states": states_step(recipe, ready, who) for who in get_args(Who)}

    given = {"update": update} if update else {}

    def carried(*, shuffled: bool) -> Step:
        config = {"arm": arm.carrying(), "shuffled": shuffled}
        return Step("carry", carry, config, {**given, **seen}, both, where, version=2, needs="ranks")

    own = _merged(recipe, ready, update) if isinstance(arm, Merged) else carried(shuffled=False)
    if not arm.twin:
        return own
    source = carried(shuffled=True) if arm.twin == "shuffled_texts" else update
    config = {"which": arm.twin, "arm": arm.carrying(), "seed": 0 if arm.twin == "shuffled_texts" else recipe.seed}
    return Step("twin", twin, config, {"carried": own} | ({"source": source} if source else {}), both, where)


def _merged(recipe: Recipe, ready: Ready, update: Step | None) -> Step:
    """Several ways' updates as one: each is what its own arm would be given."""
    arm: Any = recipe.arm
    ways = {kind: ARMS[kind].model_validate(fields) for kind, fields in arm.ways().items()}
    inputs = {kind: carry_step(recipe.model_copy(update={"arm": way}), ready, update) for kind, way in ways.items()}
    return Step(
        "merge", merge, {"by": arm.by, "density": arm.density}, inputs, {"student": ready.student.sha256},
        {"student": ready.student.folder, "student_name": ready.student.name}, needs="model",
    )  # fmt: skip


def _read(recipe: Recipe, ready: Ready) -> dict[str, Step]:
    """The drawn tokens of training rows, and what each model has at them."""
    texts = data_step(texts_of(recipe, ready.splits))
    config = {"template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens}
    drawn = Step(
        "pairs", pairs, config | {"tokens": recipe.carry.tokens}, {"texts": texts},
        {"teacher": ready.teacher.sha256, "student": ready.student.sha256},
        {"teacher": ready.teacher.folder, "student": ready.student.folder},
    )  # fmt: skip
    return {"pairs": drawn} | {f"of_{who}": _inputs(recipe, ready, who, drawn, texts) for who in get_args(Who)}


def _inputs(recipe: Recipe, ready: Ready, who: Who, drawn: Step, texts: Step) -> Step:
    config: dict[str, Any] = {"template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens}
    config |= {"side": get_args(Who).index(who), "dtype": dtype_of(recipe, ready, who)}
    model = ready.checkpoint(who)
    return Step(
        "inputs", inputs, config, {"pairs": drawn, "texts": texts}, {"model": model.sha256}, {"model": model.folder},
        needs="ranks",
    )  # fmt: skip


def laten_step(recipe: Recipe, ready: Ready) -> Step:
    """What is added to the student's neurons, made of the teacher's."""
    arm: Any = recipe.arm
    texts = data_step(draw(ready.splits["train"], arm.examples))
    config = {"template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens}
    both = {"teacher": ready.teacher.sha256, "student": ready.student.sha256}
    folders = {"teacher": ready.teacher.folder, "student": ready.student.folder}
    asked = Step("answers", answers, config, {"texts": texts}, both, folders)
    seen = {f"of_{who}": _inputs(recipe, ready, who, asked, texts) for who in get_args(Who)}
    made = arm.carrying() | {"at_random": arm.at_random}
    more = {"arm": made, "seed": recipe.seed if arm.at_random else 0, "dtype": dtype_of(recipe, ready, "student")}
    return Step(
        "laten", laten, config | more, {"answers": asked, "texts": texts, **seen}, both,
        folders | {"student_name": ready.student.name}, needs="model",
    )  # fmt: skip


def carried_step(recipe: Recipe, ready: Ready, update: Step | None) -> Step:
    """The carried update as the student is given it: where it is injected, at the scale that validation rows choose.

    A control is given the scale of the arm that it controls.
    """
    arm: Any = recipe.arm
    carried = laten_step(recipe, ready) if isinstance(arm, Laten) else carry_step(recipe, ready, update)
    if arm.cancels:
        return carried
    if arm.is_control:
        way = ARMS[arm.control_of].model_validate(arm.carrying() | {"arrives": arm.arrives})
        scaled = carried_step(recipe.model_copy(update={"arm": way}), ready, update)
        return Step("scale", as_scaled, {"rank": recipe.rank}, {"carried": carried, "scaled": scaled}, version=2)
    return Step(
        "scale", scale, needs="model", version=2,
        config={
            "template": template_of(recipe, ready.task), "max_tokens": recipe.finetune.max_tokens,
            "dtype": dtype_of(recipe, ready, "student"), "scales": recipe.carry.scales, "rank": recipe.rank,
            "by_role": arm.by_role,
        },
        inputs={"carried": carried, "rows": data_step(used_rows(recipe, ready.splits, "validation"))},
        identity={"model": ready.student.sha256}, where={"model": ready.student.folder},
    )  # fmt: skip
