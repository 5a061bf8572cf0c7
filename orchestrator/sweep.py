"""Recipe × axes → trials over the store.

    plan = Plan.of(sweep)                           # cells, trials, shared steps: checked, nothing run
    record = run_sweep(plan, run, tracker, screen)  # what the store lacks is run; the record is what `compare` reads

A cell is a leaderboard row: one point of the axes. Its learning rate is chosen on the validation split, with a random
seed of its own; then its trials, one a random seed, are scored on the test split. Every arm gets the same treatment.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator import pipeline
from orchestrator.errors import UserError
from orchestrator.pipeline import Ready, Who
from orchestrator.recipe import Recipe, Run, Sweep, label, one_line
from orchestrator.run_record import Record
from orchestrator.runner import Runner, Screen, Trial
from orchestrator.steps.data import data_step
from orchestrator.steps.evaluate import read_metrics
from orchestrator.steps.record import check_name, write_record
from orchestrator.steps.step import Step
from orchestrator.store import Store, fingerprint
from orchestrator.tasks.base import Split
from orchestrator.tracking import Tracker
from orchestrator.transfer.arms import Lora

TUNING_SEED = 1000  # no trial has it: a learning rate is chosen without a look at the trials that it is for


FIXED = {  # what all trials of a sweep have in common, or what the sweep itself varies
    "lr": "give the grid as `lr` (--lr): each row chooses from it on the validation split",
    "seed": "a sweep runs the seeds 0 to `repeats` - 1 (--repeats)",
    "teacher": "run one sweep a teacher",
    "student": "run one sweep a student",
    "task": "run one sweep a task",
    "measure.seeds": "run one sweep for each file of seed examples",
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
        rank = [f"r{recipe.rank}"] if self.adapted else []
        return " ".join([self.label, *strategies, *rank, *(f"{key} {value:g}" for key, value in more.items())])

    def trial(self, ready: Ready, split: Split, *, lr: float, seed: int, stage: str) -> Trial:
        """This cell at one learning rate and random seed, scored on a split."""
        recipe = self.recipe.model_copy(update={"lr": lr, "seed": seed})
        adapter = pipeline.finetune_step(recipe, ready, self.who) if self.adapted else None
        step = pipeline.evaluate_step(recipe, ready, split, self.who, adapter)
        params = {"stage": stage, "split": split, "label": self.label, **flat(recipe.model_dump(mode="json"))}
        more = {"lr": lr, "seed": seed} if self.adapted else {}
        return Trial(self.name(**more), step, params)


@dataclass(frozen=True)
class Plan:
    """A sweep with everything found and checked."""

    sweep: Sweep
    ready: Ready
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, sweep: Sweep) -> Plan:
        """UserError for an axis, a value or a combination that can't be."""
        cells = cells_of(sweep)
        ready = pipeline.prepare(sweep.recipe)
        for cell in cells:
            if cell.who == "student":
                pipeline.check(cell.recipe, ready)
        return cls(sweep, ready, cells)

    @property
    def references(self) -> tuple[Cell, Cell]:
        """The untouched models."""
        recipe = self.cells[0].recipe
        return Cell(recipe, "student", adapted=False), Cell(recipe, "teacher", adapted=False)

    @property
    def trials(self) -> int:
        """Fine-tunings."""
        return fine_tunings(self.sweep, self.cells)

    @cached_property
    def shared(self) -> list[Step]:
        """The extractions, each once; they bring the teacher's pass with them."""
        steps = [pipeline.extract_step(cell.recipe, self.ready) for cell in self.cells if cell.recipe.arm.extracts]
        return list({step.fingerprint: step for step in steps}.values())

    @cached_property
    def key(self) -> str:
        """The sweep's identity: all that it asks for, on these very models and rows."""
        first = [cell.trial(self.ready, "test", lr=1, seed=0, stage="trial").step.fingerprint for cell in self.cells]
        validation = data_step(self.ready.splits["validation"]).fingerprint
        models = [self.ready.teacher.sha256, self.ready.student.sha256]
        protocol = self.sweep.model_dump(mode="json", include={"lr", "repeats", "baseline", "gate"})
        return fingerprint({"cells": first, "models": models, "validation": validation, **protocol})

    @property
    def name(self) -> str:
        """As named, or after task, teacher and identity."""
        task, teacher = self.ready.task.name, Path(self.ready.teacher.name).name
        return self.sweep.name or f"{teacher if teacher.startswith(task) else f'{task}-{teacher}'}-{self.key[:6]}"


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


def seeds_of(sweep: Sweep, cell: Cell) -> range:
    """The random seeds of a cell's trials; models that only bound the scale get one."""
    return range(sweep.repeats if cell.who == "student" and cell.adapted else 1)


def fine_tunings(sweep: Sweep, cells: Iterable[Cell]) -> int:
    """How many: of each cell for each learning rate of a real grid, and for each random seed."""
    tuning = len(sweep.lr) if len(sweep.lr) > 1 else 0
    return sum(tuning + len(seeds_of(sweep, cell)) for cell in cells)


def expand(sweep: Sweep) -> list[Recipe]:
    """The product of the axes, without the repetitions that an arm makes by ignoring an axis."""
    for path in sweep.axes:
        if instead := FIXED.get(path.split(".")[0] if path != "measure.seeds" else path):
            raise UserError(f"axes: {path} is no axis of a sweep; {instead}")
    if sweep.recipe.seed:
        raise UserError(f"seed: {sweep.recipe.seed}: {FIXED['seed']}")
    recipes = []
    for point in itertools.product(*sweep.axes.values()):
        fields = sweep.recipe.model_dump(mode="json")
        fields = {key: value for key, value in fields.items() if value is not None}
        for path, value in zip(sweep.axes, point, strict=True):
            _set(fields, path, value)
        try:
            recipes.append(Recipe.model_validate(fields).settled())
        except ValidationError as error:
            raise UserError(one_line(error)) from error
    return list(dict.fromkeys(recipes))


def run_sweep(plan: Plan, run: Run, track: Callable[[], Tracker], screen: Screen) -> dict[str, Any]:
    """Run what the store lacks, and write the sweep's record.

    `track` opens the tracker once the shared steps are done, so that bad weights or rows leave no run behind.
    """
    store, sweep, ready = Store(run.store), plan.sweep, plan.ready
    check_name(store, plan.name, plan.key)
    with Runner(store, run, plan.key, screen) as runner:
        runner.share(plan.shared)
        params = flat(sweep.model_dump(mode="json"))
        runner.begin(track(), Record(plan.key, plan.name, params=params, status="RUNNING"))
        references = [(cell, cell.trial(ready, "test", lr=1, seed=0, stage="reference")) for cell in plan.references]
        grids: dict[Cell, list[tuple[float, Trial]]] = {}
        if len(sweep.lr) > 1:
            for cell in plan.cells:
                tuning = [cell.trial(ready, "validation", lr=lr, seed=TUNING_SEED, stage="tune") for lr in sweep.lr]
                grids[cell] = list(zip(sweep.lr, tuning, strict=True))
        runner.go(
            "choosing learning rates" if grids else "untouched models",
            [trial for _, trial in references] + [trial for grid in grids.values() for _, trial in grid],
        )
        chosen = {cell: _best(grids[cell], runner) if grids else sweep.lr[0] for cell in plan.cells}
        for cell, lr in chosen.items():
            if lr is None:
                reason = "every learning rate of the grid failed; take smaller ones with --lr"
                runner.failed[cell.name()] = {"label": cell.name(), "reason": reason}
        finals = [
            (cell, [cell.trial(ready, "test", lr=lr, seed=seed, stage="trial") for seed in seeds_of(sweep, cell)])
            for cell, lr in chosen.items()
            if lr is not None
        ]
        runner.go("trials", [trial for _, trials in finals for trial in trials])
        rows = [_row(cell, None, False, [trial]) for cell, trial in references]
        edges = {min(sweep.lr), max(sweep.lr)} if grids else set()
        rows += [_row(cell, chosen[cell], chosen[cell] in edges, trials) for cell, trials in finals]
        record = {
            "name": plan.name,
            "key": plan.key,
            "task": ready.task.name,
            "metric": f"{ready.task.metric.kind},{ready.task.metric.filter_name}",
            "baseline": sweep.baseline,
            "gate": _gate(plan, rows, store),
            "sweep": sweep.model_dump(mode="json"),
            "rows": rows,
            "failed": runner.failed,
        }
        runner.tell("FAILED" if runner.failed else "FINISHED", folder=write_record(store, record), seconds=20)
    return record


def _best(grid: list[tuple[float, Trial]], runner: Runner) -> float | None:
    """The learning rate with the best validation score, the lower loss among equals; None where all failed."""
    figures = [(lr, runner.metrics(trial)) for lr, trial in grid]
    scored = [(found["score"], -found["loss"], lr) for lr, found in figures if found]
    return max(scored)[2] if scored else None


def _row(cell: Cell, lr: float | None, at_edge: bool, trials: list[Trial]) -> dict[str, Any]:
    recipe = cell.recipe.model_copy(update={"lr": lr} if lr else {}).model_dump(mode="json")
    if not cell.adapted:
        recipe |= {"layers": None, "structure": None, "modules": None}
    return {
        "label": cell.label,
        "adapted": cell.adapted,
        "lr_at_edge": at_edge,
        "recipe": recipe,
        "trials": [trial.step.fingerprint for trial in trials],
    }


def _gate(plan: Plan, rows: list[dict[str, Any]], store: Store) -> dict[str, Any] | None:
    """Whether the teacher knows the task at all: its best row against the gate that the sweep sets."""
    if plan.sweep.gate is None:
        return None
    keys = [key for row in rows if row["label"].startswith("teacher") for key in row["trials"]]
    folders = [folder for key in keys if (folder := store.find("evaluate", key))]
    score = max(read_metrics(folder)["score"] for folder in folders) if folders else 0.0
    return {"least": plan.sweep.gate, "score": score, "passed": score >= plan.sweep.gate}


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names, strategies by their label: what MLflow shows side by side."""
    result: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict) and "kind" in value:
            result[prefix + key] = label(value)
        elif isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return result


def _set(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise UserError(f"axes: {path!r} is no field of a recipe; `pkt strategies` lists the fields")
    fields[last] = value
