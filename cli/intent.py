"""What a sweep is about to do, in words: how much, what it shares, what it costs, and what it could show."""

from __future__ import annotations

import re
from typing import Any

from cli.options import amount
from cli.plan import duration
from orchestrator.cells import cells_of, fine_tunings, groups_of, seeds_of, shared_by
from orchestrator.costs import Hardware
from orchestrator.errors import UserError
from orchestrator.plan import forecast
from orchestrator.prepare import find_task
from orchestrator.recipe import Grid, Sweep
from orchestrator.steps.compare import BOUNDS
from orchestrator.steps.power import EXPECTED, smallest_effect
from orchestrator.steps.record import asked_for, differences
from orchestrator.steps.verdict import ENOUGH_SEEDS
from orchestrator.store import Store
from orchestrator.tasks import TASKS

DEFAULT_MEMORY = "80GB"


def as_begun(store: Store, name: str, said: Sweep | None) -> Sweep:
    """The sweep that was begun under this name. UserError where what is said now is something else."""
    before = asked_for(store, name)
    sweep = Sweep.model_validate(before)
    if said is not None:
        now = said.model_copy(update={"name": sweep.name}).model_dump(mode="json")
        if different := differences(before, now):
            raise UserError(
                f"resume: {name} was begun otherwise ({different}); say --resume {name} alone, or give a new --name"
            )
    return sweep.model_copy(update={"name": name})


def afford(sweep: Sweep, budget: str) -> Sweep:
    """As many trials as the plan says that the budget pays for, the teacher's part paid first."""
    found = re.fullmatch(r"([0-9.]+) *gpu-?h(?:ours?)?", budget.strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"budget: {budget!r} is no amount; write it as 8gpu-hours")
    steps = forecast(sweep, Hardware(gpus=1, memory=amount(DEFAULT_MEMORY, "gpu-memory"))).steps
    finetune = max(steps["finetune"].gpu_hours, 1e-9)
    teacher = steps["sweep"].gpu_hours - fine_tunings(sweep, cells_of(sweep)) * finetune
    trials = int((float(found[1]) - teacher) / finetune)
    paid = f"budget: {budget} pays for {max(trials, 0)} fine-tunings"
    if isinstance(sweep.search, Grid):
        if trials < (needed := fine_tunings(sweep, cells_of(sweep))):
            raise UserError(
                f"{paid}, this sweep makes {needed}; give more, or say --search random, optuna or asha, which take what"
                " there is"
            )
        return sweep
    affordable = sweep.model_copy(update={"trials": max(trials, 1)})
    try:
        groups_of(affordable, cells_of(affordable))
    except UserError as error:
        raise UserError(f"{paid}; {error}") from error
    return affordable


def rows_of(sweep: Sweep) -> tuple[int | None, int | None]:
    """How many rows the test and the validation split have; unknown where a hub would have to be asked."""
    choice = sweep.recipe.task
    known = TASKS.get(choice.name)
    if known and known.source != "generated" and choice.data is None:
        return None, None
    splits = find_task(choice)[1]
    return len(splits["test"]), len(splits["validation"])


def refuse_too_many(sweep: Sweep, *, yes: bool) -> None:
    """UserError for more fine-tunings than the sweep's limit, unless they were said to be wanted."""
    count = fine_tunings(sweep, cells_of(sweep))
    if count > sweep.max_trials and not yes and sweep.trials is None:  # a number that was said is wanted
        raise UserError(
            f"axes: {count:,} fine-tunings, more than {sweep.max_trials}; say --yes to run them all, give fewer --rank,"
            " --layers, --lr or --repeats, or let --search random --trials N choose among them"
        )


def counts(sweep: Sweep) -> dict[str, Any]:
    """What would run, counted."""
    cells = cells_of(sweep)
    groups = groups_of(sweep, cells)
    return {
        "teacher": sweep.recipe.teacher,
        "student": sweep.recipe.student,
        "task": sweep.recipe.task.name,
        "rows": [group.cells[0].name() if len(group.cells) == 1 else group.cells[0].label for group in groups],
        "fine_tunings": fine_tunings(sweep, cells),
        "choosing": sum(group.searched for group in groups) * sweep.tuning_seeds,
        "compared": sum(len(seeds_of(sweep, group.cells[0])) for group in groups),
        **{name.replace(" ", "_"): count for name, count in shared_by(sweep, cells).items()},
        "comparisons": len({cell.label for cell in cells} - {*BOUNDS}) - 1,
    }


def intent(sweep: Sweep, gpu_memory: str | None, *, cost: bool = True) -> str:
    """For people."""
    told = counts(sweep)
    lines = [
        f"{told['teacher']} -> {told['student']} on {told['task']}",
        f"{_many(told['fine_tunings'], 'fine-tuning')}: {told['choosing']} choose settings on the validation split,"
        f" {told['compared']} are compared on the test split ({_many(len(told['rows']), 'row')},"
        f" {_many(sweep.repeats, 'random seed')} each).",
        f"Shared by all of them: {_shared(told)}.",
    ]
    if cost:
        memory = gpu_memory or DEFAULT_MEMORY
        whole = forecast(sweep, Hardware(memory=amount(memory, "gpu-memory"))).steps["sweep"]
        gpus = f"{_many(whole.ranks, 'GPU')} of {memory}"
        lines.append(f"Cost by `pkt plan`: {whole.gpu_hours:.2g} GPU-hours, {duration(whole.seconds)} on {gpus}.")
    return "\n".join([*lines, *power(sweep, told["comparisons"], *rows_of(sweep))])


def power(sweep: Sweep, comparisons: int, test: int | None, validation: int | None) -> list[str]:
    """What the comparison could show at all."""
    if comparisons < 1:
        return []
    if sweep.repeats < ENOUGH_SEEDS:
        return [f"{_many(sweep.repeats, 'random seed')} can describe, not claim: --repeats {ENOUGH_SEEDS} or more can."]
    test = sweep.recipe.evaluate.examples or test
    rows = test or 10**9  # unknown: as if there were no end of them
    least = [smallest_effect(one.error(sweep.repeats, rows), sweep.repeats - 1, comparisons) for one in EXPECTED]
    seeds = ", ".join(f"{one.seed:g}" for one in EXPECTED)
    lines = [
        f"It would claim, 4 times of 5, a true difference of {', '.join(f'{one:.2f}' for one in least)} where trainings"
        f" differ by {seeds} from seed to seed (standard deviation{'' if test else '; more with few test rows'})."
    ]
    if sweep.effect and sweep.effect < least[0]:
        lines.append(
            f"warning: a difference of {sweep.effect:g} can't be shown so, even with steady trainings; with more"
            " --repeats it can."
        )
    if sweep.effect and validation and (noise := 0.5 / validation**0.5) > sweep.effect:
        lines.append(
            f"warning: {validation} validation rows tell settings apart to about {noise:.2f}; for a difference of"
            f" {sweep.effect:g} the choice between settings is half luck."
        )
    return lines


def _shared(told: dict[str, Any]) -> str:
    kinds = {
        "teacher_passes": "teacher pass",
        "extractions": "extraction",
        "passes_for_distillation": "distillation pass",
    }
    return ", ".join(_many(told[key], what) for key, what in kinds.items() if told[key]) or "nothing"


def _many(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"
