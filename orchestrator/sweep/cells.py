"""What a sweep is made of: the rows of its leaderboard, and the trials of each.

A cell is a row: one point of the axes. Its learning rate is chosen on the validation split, with random seeds of their
own; then its trials, one a random seed, are scored on the test split. Every arm gets the same treatment.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.recipe import SEEDS, Asha, Recipe, Sweep, one_line
from orchestrator.student.batches import steps_of
from orchestrator.tasks import TASKS
from orchestrator.tasks.base import Split
from orchestrator.verdict.words import label

if TYPE_CHECKING:  # to count a sweep takes none of what runs it
    from orchestrator.prepare.ready import Ready, Who
    from orchestrator.sweep.trial import Trial

TUNING_SEED = 1000  # from here on; no trial has them: a choice is made without a look at the trials that it is for
MOST_CELLS = 10_000  # beyond, even listing them takes too long

FIXED = {  # what all trials of a sweep have in common, or what the sweep itself varies
    "lr": "give the grid as `lr` (--lr): each row chooses from it on the validation split",
    "seed": "a sweep runs the seeds 0 to `repeats` - 1 (--repeats)",
    "teacher": "run one sweep a teacher",
    "student": "run one sweep a student",
    "task": "run one sweep a task",
    SEEDS: "run one sweep for each file of seed examples; names of tasks are one (--seed-tasks)",
    "evaluate": "all trials are scored on the same rows",
}


@dataclass(frozen=True)
class Cell:
    """A leaderboard row before its learning rate is known."""

    recipe: Recipe
    who: Who = "student"
    adapted: bool = True  # False: the model as it is
    rate: float | None = None  # of a teacher with the update that arms carry over: not the sweep's to choose

    @property
    def label(self) -> str:
        """The row's arm: the recipe's, or whose untouched (or tuned) model it is."""
        if self.who == "teacher":
            return "teacher_tuned" if self.adapted else "teacher"
        return self.recipe.arm.kind if self.adapted else "student"

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher itself is trained for it, and not given with an update that was made elsewhere."""
        return self.who == "teacher" and self.adapted and not (self.rate and self.recipe.update.adapter)

    def name(self, **more: Any) -> str:
        """For people: the fields that tell cells of a sweep apart."""
        recipe = self.recipe
        strategies = [label(part.model_dump()) for part in (recipe.layers, recipe.structure) if part]
        how = [*strategies, f"r{recipe.rank}"] if self.adapted else []
        return " ".join([self.label, *how, *(f"{key} {value:g}" for key, value in more.items())])

    def trial(
        self, ready: Ready, split: Split, *, lr: float, seed: int, stage: str, shares: Sequence[float] = (1.0,)
    ) -> Trial:
        """This cell at a learning rate and a random seed, scored on a split after the last of these training shares.

        What is scored on the test split is scored on the sweep's further tasks, too: the student's rows.
        """
        from orchestrator import pipeline
        from orchestrator.sweep.trial import Trial

        recipe = self.recipe.model_copy(update={"lr": lr, "seed": seed})
        recipe = (
            recipe if self.rate else recipe.settled()
        )  # plain LoRA carries nothing over, and this is what others do
        adapter = pipeline.finetune_step(recipe, ready, self.who, shares) if self.adapted else None
        if self.rate:
            adapter = pipeline.update_step(recipe, ready)
        step = pipeline.evaluate_step(recipe, ready, split, self.who, adapter, shared=self.rate is not None)
        said = recipe.arm.model_dump(mode="json", exclude_defaults=True) if self.label == recipe.arm.kind else {}
        params = {
            "stage": stage,
            "split": split,
            "share": shares[-1],
            **flat(recipe.model_dump(mode="json")),
            "measure.dtype": ready.dtype("teacher", recipe.measure.dtype),
            "finetune.dtype": step.config["dtype"],
            "arm": label({"kind": self.label, **said}),
            **({} if self.adapted else dict.fromkeys(("rank", "lr", "seed", "share"), None)),
        }
        more = {"lr": lr, "seed": seed} if self.adapted else {}
        more |= {"share": round(shares[-1], 3)} if shares[-1] < 1 else {}
        name = self.name(**more)
        if split != "test" or self.who != "student":
            return Trial(name, step, params)
        after = [
            Trial(
                f"{name}, {task}",
                pipeline.evaluate_step(recipe, ready, split, self.who, adapter, task),
                {**params, "stage": "beside", "task.name": task, "run": name},
                of=step.fingerprint,
            )
            for task in ready.beside
        ]
        if (given := pipeline.given_step(recipe, ready)) and self.adapted:
            own = {**params, "stage": "before", "task.name": "before any step", "run": name}
            at_start = pipeline.evaluate_step(recipe, ready, split, adapter=given)
            after.append(Trial(f"{name}, before any step", at_start, own, of=step.fingerprint))
        return Trial(name, step, params, tuple(after))


def cells_of(sweep: Sweep) -> tuple[Cell, ...]:
    """The rows of a sweep's leaderboard. UserError for axes, values and baselines that can't be."""
    recipes = expand(sweep)
    arms = list(dict.fromkeys(recipe.arm.kind for recipe in recipes))
    if sweep.baseline not in arms:
        raise UserError(f"baseline: {sweep.baseline!r} is not among the arms {', '.join(arms)}; add it to --arms")
    cells = [Cell(recipe) for recipe in recipes]
    carried = {recipe.update: recipe for recipe in recipes if recipe.arm.takes_update}
    for update, recipe in carried.items():
        if not update.base:  # else the teacher is the one that was trained
            cells.append(Cell(recipe.of_teacher(), "teacher", rate=update.lr))
    if sweep.tuned_teacher and not carried:
        largest = max(recipes, key=lambda recipe: recipe.rank)
        own = largest.model_copy(update={"update": sweep.recipe.update}).of_teacher()  # a settled one may lack it
        cells.append(Cell(own.model_copy(update={"rank": largest.rank}).settled(), "teacher"))
    return tuple(cells)


def check_rungs(sweep: Sweep, cell: Cell, rows: int | None = None) -> None:
    """UserError where a training has too few steps to end after ASHA's first rung. `rows`: once they are known."""
    part, search = cell.recipe.finetune, sweep.search
    if not isinstance(search, Asha) or cell.rate:  # a rate that is given isn't searched
        return
    count = steps_of(min(part.examples, rows or part.examples), part.batch_size, part.epochs)
    if count < (least := search.reduction ** (search.rungs - 1)):
        fewer = f", or --set search.rungs={search.rungs - 1}" if search.rungs > 2 else ""
        raise UserError(f"search: {count} training steps can't end after a {least}th of them; give more{fewer}")


def expand(sweep: Sweep) -> list[Recipe]:
    """The product of the axes, without the repetitions that an arm makes by ignoring an axis."""
    _check_axes(sweep)
    recipes = []
    for point in itertools.product(*sweep.axes.values()):
        fields = sweep.recipe.model_dump(mode="json", exclude_none=True)
        for path, value in zip(sweep.axes, point, strict=True):
            _set(fields, path, value)
        try:
            recipes.append(Recipe.model_validate(fields).settled())
        except ValidationError as error:
            raise UserError(one_line(error)) from error
    return list(dict.fromkeys(recipes))


def _check_axes(sweep: Sweep) -> None:
    for path, values in sweep.axes.items():
        named = path == SEEDS and all(value in TASKS for value in values)
        if instead := not named and FIXED.get(path if path == SEEDS else path.split(".")[0]):
            raise UserError(f"axes: {path} is no axis of a sweep; {instead}")
        if not values:
            raise UserError(f"axes: {path} has no values, which makes 0 trials; give it one, or leave it out")
        if inside := [other for other in sweep.axes if other.startswith(f"{path}.")]:
            raise UserError(f"axes: {path} and {inside[0]} collide, since one holds the other; vary one of them")
    if sweep.recipe.seed:
        raise UserError(f"seed: {sweep.recipe.seed}: {FIXED['seed']}")
    if (count := math.prod(map(len, sweep.axes.values()))) > MOST_CELLS:
        raise UserError(f"axes: {count:,} combinations, more than {MOST_CELLS:,}; give fewer values")


def _set(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise UserError(f"axes: {path!r} is no field of a recipe; `pkt strategies` lists the fields")
    fields[last] = value


def seeds_of(sweep: Sweep, cell: Cell) -> range:
    """The random seeds of a cell's trials; models that only bound the scale get one."""
    return range(sweep.repeats if cell.who == "student" and cell.adapted else 1)


def tuning_of(sweep: Sweep) -> range:
    """The random seeds of the trainings by which a setting is judged."""
    return range(TUNING_SEED, TUNING_SEED + sweep.tuning_seeds)


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names, strategies by their label: what MLflow shows side by side."""
    result: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict) and "kind" in value:
            result[prefix + key] = label(value)
        elif isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = " | ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else value
    return result


def asked_flat(sweep: Sweep) -> dict[str, Any]:
    """A sweep's own fields for MLflow: what varies is under `axes`, so that no column mixes it with a trial's."""
    fields = flat(sweep.model_dump(mode="json"))
    fields["axes.lr"] = fields.pop("lr")
    varied = {f"recipe.{path}" for path in (*sweep.axes, "lr", "seed")}
    return {name: value for name, value in fields.items() if name not in varied}


def _plain(value: Any) -> str:
    return label(value) if isinstance(value, dict) and "kind" in value else str(value)
