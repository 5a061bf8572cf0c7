"""What competes with what in a sweep, how often each may try, and how many trainings that makes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.recipe import RATES, Asha, Grid, Recipe, Sweep
from orchestrator.sweep.cells import Cell, seeds_of, tuning_of
from orchestrator.transfer.arms.carried import Carried

if TYPE_CHECKING:
    from orchestrator.prepare.ready import Who


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
    given, cells = tuple(cell for cell in cells if cell.rate), tuple(cell for cell in cells if not cell.rate)
    return *_searched(sweep, cells, len(given)), *(Group((cell,), (cell.rate or 0.0,), 0) for cell in given)


def _searched(sweep: Sweep, cells: tuple[Cell, ...], beside: int) -> tuple[Group, ...]:
    arms = {name: tuple(cell for cell in cells if cell.label == name) for name in dict.fromkeys(c.label for c in cells)}
    if isinstance(sweep.search, Grid):
        if sweep.trials is not None:
            raise UserError(f"trials: {sweep.trials}, but a grid makes what its axes make; say --search random with it")
        given = _grid(sweep, arms)
        return tuple(
            Group((cell,), rates, len(rates) if len(rates) > 1 or len(arms[cell.label]) > 1 else 0)
            for cell in cells for rates in [given[cell.label]]
        )  # fmt: skip
    finals = beside + sum(len(seeds_of(sweep, some[0])) for some in arms.values())
    rates = tuple(rates_of(sweep))
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


class Trainings(NamedTuple):
    """How many a sweep makes of the student, or of the teacher itself."""

    choosing: int  # on the validation split
    compared: int

    def whole(self, share: float) -> float:
        """As many whole ones as that takes, where one that chooses takes a `share` of one."""
        return self.compared + share * self.choosing


def trainings_of(sweep: Sweep, cells: Iterable[Cell], who: Who | None = None) -> Trainings:
    """Of one of the two models, or of both."""
    groups = [group for group in groups_of(sweep, cells) if who in (None, group.cells[0].who)]
    choosing = sum(group.searched for group in groups) * sweep.tuning_seeds
    return Trainings(choosing, sum(len(seeds_of(sweep, group.cells[0])) for group in groups))


def fine_tunings(sweep: Sweep, cells: Iterable[Cell]) -> int:
    """How many the sweep makes: those that choose, and those that are compared."""
    return sum(trainings_of(sweep, cells))


def share_of_a_try(sweep: Sweep) -> float:
    """What trying a setting takes of a whole training."""
    if not isinstance(sweep.search, Asha):
        return 1.0
    reduction, rungs = sweep.search.reduction, sweep.search.rungs
    return reduction ** -(rungs - 1) * (1 + (rungs - 1) * (1 - 1 / reduction))


def shared_by(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, int]:
    """How often the teacher is gone through and cut for all of the sweep's trials together, by what it is for."""
    recipes = [cell.recipe.model_copy(update={"seed": seed}).settled() for cell, seed in trained(sweep, cells)]
    cut = [recipe for recipe in recipes if recipe.arm.extracts]
    carried = [(recipe, recipe.arm) for recipe in recipes if isinstance(recipe.arm, Carried)]
    return {
        "teacher passes": len({recipe.measure for recipe in cut}),
        "extractions": len({(one.measure, one.layers, one.structure, one.modules) for one in cut}),
        "passes for distillation": len(labelled(cells)),
        # at whatever scale it is injected then
        "updates carried": len(
            {(one.update, one.carry.model_copy(update={"scales": ()}), str(arm.carrying())) for one, arm in carried}
        ),
        "scales chosen": len(_scaled(recipes)),
        "scales by role": sum(by_role for by_role, *_ in _scaled(recipes)),
    }


def _scaled(recipes: Iterable[Recipe]) -> set[tuple[Any, ...]]:
    """What scales of injected updates depend on, first whether each role has its own: a control is given its arm's."""
    injected: list[tuple[Recipe, Any]] = [(recipe, recipe.arm) for recipe in recipes if recipe.arm.injects]
    return {
        (arm.by_role, one.update, one.carry, one.rank, one.finetune.max_tokens, one.measure, str(arm.carrying()))
        for one, arm in injected
    }


def labelled(cells: Iterable[Cell]) -> set[tuple[Any, ...]]:
    """The passes in which the teacher says what it predicts, for how many rows first: "equal" or "all"."""
    return {_labels(cell.recipe) for cell in cells if "labels" in cell.recipe.arm.needs}


def _labels(recipe: Recipe) -> tuple[Any, ...]:
    """What a pass for distillation depends on: arms that agree on it share one."""
    arm: Any = recipe.arm
    return (
        arm.rows, arm.temperature, recipe.measure if arm.rows == "equal" else None,
        recipe.update if arm.takes_update else None,
    )  # fmt: skip
