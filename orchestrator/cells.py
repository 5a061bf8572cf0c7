"""What a sweep is made of: the rows of its leaderboard, and the trials of each.

A cell is a row: one point of the axes. Its learning rate is chosen on the validation split, with random seeds of their
own; then its trials, one a random seed, are scored on the test split. Every arm gets the same treatment.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.recipe import RATES, Asha, Grid, Recipe, Sweep, one_line
from orchestrator.steps.batches import steps_of
from orchestrator.steps.words import label
from orchestrator.tasks.base import Split
from orchestrator.transfer.arms import Distil, Lora

if TYPE_CHECKING:  # to count a sweep takes none of what runs it
    from orchestrator.prepare import Ready, Who
    from orchestrator.runner import Trial

TUNING_SEED = 1000  # from here on; no trial has them: a choice is made without a look at the trials that it is for
MOST_CELLS = 10_000  # beyond, even listing them takes too long

FIXED = {  # what all trials of a sweep have in common, or what the sweep itself varies
    "lr": "give the grid as `lr` (--lr): each row chooses from it on the validation split",
    "seed": "a sweep runs the seeds 0 to `repeats` - 1 (--repeats)",
    "teacher": "run one sweep a teacher",
    "student": "run one sweep a student",
    "task": "run one sweep a task",
    "measure.seeds": "run one sweep for each file of seed examples",
    "evaluate": "all trials are scored on the same rows",
}


@dataclass(frozen=True)
class Cell:
    """A leaderboard row before its learning rate is known."""

    recipe: Recipe
    who: Who = "student"
    adapted: bool = True  # False: the model as it is

    @property
    def label(self) -> str:
        """The row's arm: the recipe's, or whose untouched (or tuned) model it is."""
        if self.who == "teacher":
            return "teacher_tuned" if self.adapted else "teacher"
        return self.recipe.arm.kind if self.adapted else "student"

    def name(self, **more: Any) -> str:
        """For people: the fields that tell cells of a sweep apart."""
        recipe = self.recipe
        strategies = [label(part.model_dump()) for part in (recipe.layers, recipe.structure) if part]
        how = [*strategies, f"r{recipe.rank}"] if self.adapted else []
        return " ".join([self.label, *how, *(f"{key} {value:g}" for key, value in more.items())])

    def trial(
        self, ready: Ready, split: Split, *, lr: float, seed: int, stage: str, shares: Sequence[float] = (1.0,)
    ) -> Trial:
        """This cell at a learning rate and a random seed, scored on a split after the last of these training shares."""
        from orchestrator import pipeline
        from orchestrator.runner import Trial

        recipe = self.recipe.model_copy(update={"lr": lr, "seed": seed}).settled()
        adapter = pipeline.finetune_step(recipe, ready, self.who, shares) if self.adapted else None
        step = pipeline.evaluate_step(recipe, ready, split, self.who, adapter)
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
        return Trial(self.name(**more), step, params)


def cells_of(sweep: Sweep) -> tuple[Cell, ...]:
    """The rows of a sweep's leaderboard. UserError for axes, values and baselines that can't be."""
    recipes = expand(sweep)
    arms = list(dict.fromkeys(recipe.arm.kind for recipe in recipes))
    if sweep.baseline not in arms:
        raise UserError(f"baseline: {sweep.baseline!r} is not among the arms {', '.join(arms)}; add it to --arms")
    cells = [Cell(recipe) for recipe in recipes]
    if sweep.tuned_teacher:
        largest = max(recipes, key=lambda recipe: recipe.rank)
        cells.append(Cell(largest.model_copy(update={"arm": Lora()}).settled(), "teacher"))
    return tuple(cells)


def check_rungs(sweep: Sweep, cell: Cell, rows: int | None = None) -> None:
    """UserError where a training has too few steps to end after ASHA's first rung. `rows`: once they are known."""
    part, search = cell.recipe.finetune, sweep.search
    if not isinstance(search, Asha):
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
        if instead := FIXED.get(path.split(".")[0] if path != "measure.seeds" else path):
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


def trained(sweep: Sweep, cells: Iterable[Cell]) -> Iterator[tuple[Cell, int]]:
    """Every cell with each random seed that it may be trained with: those that choose, too, where there is a choice."""
    cells = tuple(cells)
    tuning = tuning_of(sweep) if any(group.searched for group in groups_of(sweep, cells)) else ()
    for cell in cells:
        for seed in (*seeds_of(sweep, cell), *tuning):
            yield cell, seed


def rates_of(sweep: Sweep) -> list[float]:
    """The learning rates to choose from: as given for a grid, else RATES of them evenly on a logarithmic scale."""
    low, high = min(sweep.lr), max(sweep.lr)
    if isinstance(sweep.search, Grid) or low == high:
        return sorted(set(sweep.lr))
    step = math.log(high / low) / (RATES - 1)
    return [float(f"{low * math.exp(step * place):.3g}") for place in range(RATES)]


def finer(rates: Sequence[float], count: int) -> list[float]:
    """So many learning rates between the lowest and the highest of these, and these among them.

    The widest gap on a logarithmic scale is divided first, and each evenly.
    """
    given = sorted(rates)
    gaps = [math.log(after / before) for before, after in itertools.pairwise(given)]
    parts = [1] * len(gaps)
    for _ in range(count - len(given)):
        parts[max(range(len(gaps)), key=lambda place: round(gaps[place] / parts[place], 9))] += 1
    for digits in (3, 6, 17):
        between = [
            float(f"{low * math.exp(gap * place / into):.{digits}g}")
            for low, gap, into in zip(given, gaps, parts, strict=False)
            for place in range(1, into)
        ]
        if len({*given, *between}) == max(count, len(given)):
            break
    return sorted({*given, *between})


@dataclass(frozen=True)
class Group:
    """Cells of which one goes on to the test split: each alone in a grid, all of an arm in any other search."""

    cells: tuple[Cell, ...]
    rates: tuple[float, ...]  # learning rates that they have
    searched: int  # settings that are tried out on the validation split; 0: there is nothing to choose


def groups_of(sweep: Sweep, cells: Iterable[Cell]) -> tuple[Group, ...]:
    """What competes with what, and how often each may try. UserError for trials that don't suffice."""
    cells = tuple(cells)
    arms = {name: tuple(cell for cell in cells if cell.label == name) for name in dict.fromkeys(c.label for c in cells)}
    if isinstance(sweep.search, Grid):
        if sweep.trials is not None:
            raise UserError(f"trials: {sweep.trials}, but a grid makes what its axes make; say --search random with it")
        given = _grid(sweep, arms)
        return tuple(
            Group((cell,), rates, len(rates) if len(rates) > 1 or len(arms[cell.label]) > 1 else 0)
            for cell in cells for rates in [given[cell.label]]
        )  # fmt: skip
    rates, finals = tuple(rates_of(sweep)), sum(len(seeds_of(sweep, some[0])) for some in arms.values())
    total = sweep.trials or finals + len(arms) * sweep.tuning_seeds * sweep.search.settings
    each = (total - finals) // (len(arms) * sweep.tuning_seeds)
    least = len(rates) * min(len(some) for some in arms.values())
    if least < 2:
        raise UserError(f"lr: an arm has {least} setting, and {sweep.search.kind} chooses among several; give two --lr")
    each = min(each, least)  # as many as the poorest arm has
    if each < 2:
        raise UserError(
            f"trials: {total} leave {max(each, 0)} settings to try for each of {len(arms)} arms after {finals} trials"
            f" for the comparison; give at least {finals + 2 * len(arms) * sweep.tuning_seeds}"
        )
    return tuple(Group(some, rates, each) for some in arms.values())


def _grid(sweep: Sweep, arms: Mapping[str, Sequence[Cell]]) -> dict[str, tuple[float, ...]]:
    """The learning rates of each arm's rows, so many that every arm has as many tries as every other.

    An arm with fewer rows would lose to luck: the best of six tries is better than the best of three of the same. One
    rate has none between it and itself, so that rows alone decide there, and the verdict says what that forbids.
    """
    given = rates_of(sweep)
    if len(given) == 1:
        return dict.fromkeys(arms, tuple(given))
    rows = {name: len(some) for name, some in arms.items() if some[0].who == "student"}
    common, most = math.lcm(*rows.values()), max(rows.values()) * len(given)
    tries = -(-most // common) * common
    return {name: tuple(finer(given, tries // rows[name] if name in rows else len(given))) for name in arms}


def tries_of(sweep: Sweep, cells: Iterable[Cell]) -> dict[str, int]:
    """How many settings each arm chooses from."""
    found: dict[str, int] = {}
    for group in groups_of(sweep, cells):
        arm = group.cells[0].label
        found[arm] = found.get(arm, 0) + max(1, group.searched)
    return found


def fine_tunings(sweep: Sweep, cells: Iterable[Cell]) -> int:
    """How many the sweep makes: those that choose, and those that are compared."""
    return sum(
        group.searched * sweep.tuning_seeds + len(seeds_of(sweep, group.cells[0])) for group in groups_of(sweep, cells)
    )


def whole_trainings(sweep: Sweep, trials: int) -> float:
    """As many whole trainings as so many fine-tunings take, as is to be expected: ASHA goes on with one in so many."""
    compared = sum(len(seeds_of(sweep, group.cells[0])) for group in groups_of(sweep, cells_of(sweep)))
    return min(trials, compared) + max(0, trials - compared) * share_of_a_try(sweep)


def share_of_a_try(sweep: Sweep) -> float:
    """What trying a setting takes of a whole training."""
    if not isinstance(sweep.search, Asha):
        return 1.0
    reduction, rungs = sweep.search.reduction, sweep.search.rungs
    return reduction ** -(rungs - 1) * (1 + (rungs - 1) * (1 - 1 / reduction))


def shared_by(sweep: Sweep, cells: Iterable[Cell]) -> dict[str, int]:
    """How often the teacher is gone through and cut for all of the sweep's trials together, by what it is for."""
    recipes = [cell.recipe.model_copy(update={"seed": seed}).settled() for cell, seed in trained(sweep, cells)]
    cut = [recipe for recipe in recipes if recipe.arm.extracts]
    return {
        "teacher passes": len({recipe.measure for recipe in cut}),
        "extractions": len({(one.measure, one.layers, one.structure, one.modules) for one in cut}),
        "passes for distillation": len({recipe.arm for recipe in recipes if isinstance(recipe.arm, Distil)}),
    }


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
