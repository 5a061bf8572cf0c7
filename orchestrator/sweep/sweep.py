"""Recipe × axes → trials over the store.

    plan = Plan.of(sweep)                           # cells, trials, shared steps: checked, nothing run
    record = run_sweep(plan, run, tracker, screen)  # what the store lacks is run; the record is what `compare` reads

The validation split chooses, the test split is scored once: by the trials that are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from orchestrator.prepare.ready import Ready, Who, check, prepare
from orchestrator.recipe import SEEDS, Sweep
from orchestrator.report.drawn import write_pictures
from orchestrator.report.record import Refused, begun, read_scores, write_record
from orchestrator.run import Run
from orchestrator.store import Store, fingerprint
from orchestrator.sweep.cells import Cell, asked_flat, cells_of, seeds_of
from orchestrator.sweep.groups import Group, fine_tunings, groups_of
from orchestrator.sweep.hardware import Hardware
from orchestrator.sweep.labbook import commit, sweep_record, with_verdict
from orchestrator.sweep.plan import counts
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.screen import Screen
from orchestrator.sweep.search import Choice, choose, rungs_of, table_of
from orchestrator.sweep.stages import Stage
from orchestrator.sweep.trial import Trial
from orchestrator.tasks.rows import data_step
from orchestrator.tasks.template import TODAY
from orchestrator.tracking.tracker import Tracker
from orchestrator.verdict.asked import BOUNDS
from orchestrator.verdict.estimates import leaderboard
from orchestrator.verdict.gate import gate_of
from orchestrator.verdict.verdict import verdict_of
from orchestrator.verdict.words import doubt


@dataclass(frozen=True)
class Plan:
    """A sweep with everything found and checked."""

    sweep: Sweep
    ready: Ready
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, sweep: Sweep, say: Callable[[str], None] = lambda line: None, recompute: bool = False) -> Plan:
        """UserError for an axis, a value or a combination that can't be; `say` and `recompute` are as of `prepare`."""
        cells_of(sweep)  # what can't be is told before anything is fetched
        ready = prepare(sweep.recipe, say, recompute, beside=sweep.tasks, seeds=sweep.axes.get(SEEDS, ()))
        sweep = _typed(sweep, ready)
        cells = cells_of(sweep)
        for cell in cells:
            if cell.who == "student":
                check(cell.recipe, ready)
        plan = cls(sweep, ready, cells)
        for group in plan.groups:
            rungs_of(sweep, ready, table_of(group)[0])
        return plan

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
    def groups(self) -> tuple[Group, ...]:
        """What competes with what."""
        return groups_of(self.sweep, self.cells)

    @cached_property
    def key(self) -> str:
        """The sweep's identity: all that it asks for, on these very models and rows."""
        first = [cell.trial(self.ready, "test", lr=1, seed=0, stage="trial").step.fingerprint for cell in self.cells]
        validation = data_step(self.ready.splits["validation"]).fingerprint
        models = [self.ready.teacher.sha256, self.ready.student.sha256]
        protocol = self.sweep.model_dump(
            mode="json", include={"lr", "repeats", "baseline", "gate", "search", "trials", "tuning_seeds"}
        )
        if beside := self.ready.beside.items():
            protocol["margin"] = self.sweep.margin
            protocol["tasks"] = {
                name: [task.metric.as_json(), data_step(rows).fingerprint] for name, (task, rows) in beside
            }
        return fingerprint({"cells": first, "models": models, "validation": validation, **protocol})

    @property
    def tracked(self) -> str:
        """Its identity in MLflow: the same request under another name is another run."""
        return fingerprint([self.key, self.name])

    @property
    def name(self) -> str:
        """As named, or after task, teacher and identity."""
        task, teacher = self.ready.task.name, Path(self.ready.teacher.name).name
        return self.sweep.name or f"{teacher if teacher.startswith(task) else f'{task}-{teacher}'}-{self.key[:6]}"


def run_sweep(
    plan: Plan, run: Run, track: Callable[[], Tracker], screen: Screen, *, force: bool = False
) -> dict[str, Any]:
    """Run what the store lacks, and write the sweep's record.

    The untouched models are scored before anything else is done: UserError where the teacher surely misses its gate,
    and nothing could be claimed; `force` goes on. `track` opens the tracker after that, so that a model which can't be
    loaded or asked leaves no run behind.
    """
    store, sweep, ready = Store(run.store), plan.sweep, plan.ready
    planned = counts(sweep, Hardware().memory)
    with (
        begun(store, plan.name, plan.key, sweep.model_dump(mode="json")) as folder,
        store.in_use(),
        Runner(store, run, plan.tracked, screen, folder) as runner,
    ):
        references = [(cell, cell.trial(ready, "test", lr=1, seed=0, stage="reference")) for cell in plan.references]
        wanted = [trial for _, trial in references]
        rows = [_row(cell, None, [trial]) for cell, trial in references]

        def untouched() -> Iterator[Stage]:
            """The models as they are; then the gate is asked, and the sweep's own run begins."""
            if unscored := [one for one in wanted if not all(map(runner.metrics, (one, *one.after)))]:
                yield Stage("scoring the untouched models", unscored, sum(1 + len(one.after) for one in unscored))
            _ask(plan, rows, store, screen, force)
            asked = sweep_record(plan.tracked, plan.name, asked_flat(sweep), planned, ready, sweep.recipe)
            runner.begin(track(), asked)
            for trial in wanted:
                for one in (trial, *trial.after):
                    runner.tell(one)

        def ended(trial: Trial) -> None:
            """The gate, once the tuned teacher has its score."""
            if (trial.params["arm"], trial.params["stage"]) == ("teacher_tuned", "trial"):
                tuned = {"label": "teacher_tuned", "trials": [trial.step.fingerprint]}
                _ask(plan, [*rows, tuned], store, screen, force=True)

        finals = cache(partial(_finals, sweep, ready))
        choices = choose(sweep, ready, plan.groups, runner, finals, untouched(), ended)
        tried: dict[str, int] = {}
        for place, (group, choice) in enumerate(zip(plan.groups, choices, strict=True)):
            arm = group.cells[0].label
            tried[arm] = tried.get(arm, 0) + (choice.tried if choice else 0)
            if choice:
                rows.append(_row(choice.setting.cell, choice, finals(choice)))
            else:
                name = group.cells[0].name()
                reason = (
                    "every setting that was tried failed; take smaller learning rates with --lr, or where tries were"
                    " lost the same command again"
                )
                runner.failed[f"row {place}"] = {"label": name, "reason": reason}
        record: dict[str, Any] = {
            "name": plan.name,
            "key": plan.key,
            "commit": commit(),
            "task": ready.task.name,
            "metric": ready.task.metric.name,
            "fit": ready.fit,
            "computed_in": [f"teacher {ready.dtypes['teacher']}", f"student {ready.dtypes['student']}"],
            "date": TODAY.isoformat() if sweep.recipe.task.template == "chat" else None,  # that templates are told
            "baseline": sweep.baseline,
            "tasks": {name: other.metric.name for name, (other, _) in ready.beside.items()},
            "margin": sweep.margin,
            "gate": _gate(plan, rows, store),
            "sweep": sweep.model_dump(mode="json"),
            "rows": rows,
            "tried": tried,
            "failed": runner.failed,
        }
        found = write_record(store, record)
        write_pictures(store, record, found)
        if found:
            board, told = leaderboard(found, sweep.baseline), verdict_of(record, found)
            assert runner.told
            runner.told = with_verdict(runner.told, board, told.lines(), len(runner.failed))
        runner.end("FAILED" if runner.failed else "FINISHED", folder=folder, seconds=20)
    return record


def _typed(sweep: Sweep, ready: Ready) -> Sweep:
    """The sweep with the number types that "auto" means on this machine written into it.

    So a sweep that is resumed on another machine goes on in the types in which it was begun.
    """
    recipe, axes = sweep.recipe, dict(sweep.axes)
    parts: tuple[tuple[str, Who], ...] = (("measure", "teacher"), ("finetune", "student"))
    for name, who in parts:
        part, path = getattr(recipe, name), f"{name}.dtype"
        recipe = recipe.model_copy(update={name: part.model_copy(update={"dtype": ready.dtype(who, part.dtype)})})
        if path in axes:
            axes[path] = tuple(dict.fromkeys(ready.dtype(who, asked) for asked in axes[path]))
    return sweep.model_copy(update={"recipe": recipe, "axes": axes})


def _finals(sweep: Sweep, ready: Ready, choice: Choice) -> list[Trial]:
    cell, lr = choice.setting.cell, choice.setting.lr
    return [cell.trial(ready, "test", lr=lr, seed=seed, stage="trial") for seed in seeds_of(sweep, cell)]


def _row(cell: Cell, choice: Choice | None, trials: list[Trial]) -> dict[str, Any]:
    recipe = cell.recipe.model_copy(update={"lr": choice.setting.lr} if choice else {}).model_dump(mode="json")
    for part in ("measure", "finetune"):
        recipe[part]["dtype"] = trials[0].params[f"{part}.dtype"]
    if not cell.adapted:
        recipe |= {"layers": None, "structure": None, "modules": None}
    return {
        "label": cell.label,
        "adapted": cell.adapted,
        "lr_at_edge": bool(choice and choice.at_edge),
        "validation": choice and choice.validation,
        "recipe": recipe,
        "trials": [trial.step.fingerprint for trial in trials],
        "beside": _beside(trials),
        "before": [one.step.fingerprint for trial in trials for one in trial.after if one.params["stage"] == "before"],
    }


def _beside(trials: list[Trial]) -> dict[str, list[str]]:
    """By task, what its trials' adapters were scored by there, in the trials' order."""
    found: dict[str, list[str]] = {}
    for trial in trials:
        for one in (one for one in trial.after if one.params["stage"] == "beside"):
            found.setdefault(one.params["task.name"], []).append(one.step.fingerprint)
    return found


def _gate(plan: Plan, rows: list[dict[str, Any]], store: Store) -> dict[str, Any]:
    """Whether the teacher knows the task, by what these rows scored."""
    found = {row["label"]: read_scores(folder) for row in rows if row["label"] in BOUNDS
             for key in row["trials"] if (folder := store.find("evaluate", key))}  # fmt: skip
    student = found.pop("student", None)
    if any(cell.rate for cell in plan.cells) and "teacher_tuned" in found:
        del found["teacher"]  # the update is of the one that was trained, which may know less
    return gate_of(found, student, plan.sweep.gate)


def _ask(plan: Plan, rows: list[dict[str, Any]], store: Store, screen: Screen, force: bool) -> None:
    """Warn where the teacher may not know the task, or stop where it surely doesn't: before anything is trained.

    Where the sweep tunes the teacher, too, it is asked once that one is scored.
    """
    tuned = any(row["label"] == "teacher_tuned" for row in rows)
    if any(cell.who == "teacher" for cell in plan.cells) and not tuned:
        return
    gate = _gate(plan, rows, store)
    if not (unsure := doubt(gate, {cell.label for cell in plan.cells})):
        return
    if gate["set"] and gate["answer"] == "doesn't" and not force:
        raise Refused(
            f"gate: {unsure}; take another teacher or a lower gate, have it fine-tuned on the task (--set"
            " tuned_teacher=true), or --force goes on"
        )
    screen.warn(unsure)
