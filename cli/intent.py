"""What a sweep is about to do, in words: how much, what it shares, what it costs, and what it could show."""

from __future__ import annotations

import re
from typing import Any

from cli.options import amount
from cli.plan import duration
from orchestrator.errors import UserError
from orchestrator.prepare.rows import at_hand, find_task
from orchestrator.recipe import Grid, Sweep
from orchestrator.report.record import asked_for, differences
from orchestrator.store import Store
from orchestrator.sweep.cells import cells_of
from orchestrator.sweep.groups import fine_tunings, groups_of, share_of_a_try, trainings_of
from orchestrator.sweep.hardware import Hardware
from orchestrator.sweep.lengths import lengths_for
from orchestrator.sweep.plan import counts, forecast
from orchestrator.verdict.power import EXPECTED, Spread, smallest_effect
from orchestrator.verdict.verdict import ENOUGH_SEEDS, beforehand

DEFAULT_MEMORY = "80GB"
MOST_NAMES = 12  # of rows, on the screen
MOST_DOUBLINGS = 20  # of the random seeds, to find how many would do: with a million times as many they add no more


def as_begun(store: Store, name: str) -> Sweep:
    """The sweep that was begun under this name."""
    return Sweep.model_validate(asked_for(store, name)).model_copy(update={"name": name})


def refuse_another(begun: Sweep, said: Sweep) -> None:
    """UserError where what is said now is not what was begun. A dtype that is left open now is the one of then."""
    before, now = (one.model_dump(mode="json") for one in (begun, said))
    now["name"] = said.name or begun.name
    for part in ("measure", "finetune"):
        if now["recipe"][part]["dtype"] == "auto":
            now["recipe"][part]["dtype"] = before["recipe"][part]["dtype"]
    if different := differences(before, now):
        raise UserError(
            f"resume: {begun.name} was begun otherwise ({different}); say --resume {begun.name} alone, or leave"
            " --resume out and give a new --name"
        )


def afford(sweep: Sweep, budget: str) -> Sweep:
    """As many trials as the plan says that the budget pays for, the teacher's part paid first."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *gpu-?h(?:ours?)?", budget.strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"budget: {budget!r} is no amount; write it as 8gpu-hours")
    one = Hardware(gpus=1, memory=amount(DEFAULT_MEMORY, "gpu-memory"))
    told, own = forecast(sweep, one, lengths_for(sweep)), counts(sweep, None)
    finetune, score = (told.steps[name].gpu_hours for name in ("finetune", "score"))
    final, attempt = finetune + score, max(share_of_a_try(sweep) * finetune + told.choosing.gpu_hours, 1e-9)
    compared, tries = own["compared"], own["choosing"]
    if theirs := trainings_of(sweep, cells_of(sweep), "teacher").choosing:  # each arm has as many as every other
        each = share_of_a_try(sweep) * told.steps["tune"].gpu_hours + told.steps["teacher_score"].gpu_hours
        attempt = ((tries - theirs) * attempt + theirs * each) / tries
    left = float(found[1]) - told.steps["sweep"].gpu_hours + tries * attempt  # once all that are compared are paid
    trials = int(compared + left / attempt if left >= 0 else compared + left / final)
    paid = f"budget: {budget} pays for {max(trials, 0)} fine-tunings"
    if isinstance(sweep.search, Grid):
        if trials < (needed := fine_tunings(sweep, cells_of(sweep))):
            raise UserError(
                f"{paid}, this sweep makes {needed}; give more, or say --search random, optuna or asha, which take what"
                " there is"
            )
        return sweep
    affordable = sweep.model_copy(update={"trials": max(1, min(trials, sweep.trials or trials))})
    try:
        groups_of(affordable, cells_of(affordable))
    except UserError as error:
        raise UserError(f"{paid}; {error}") from error
    return affordable


def rows_of(sweep: Sweep) -> tuple[int | None, int | None]:
    """How many rows the test and the validation split have; unknown where a hub would have to be asked."""
    if not at_hand(sweep.recipe.task):
        return None, None
    splits = find_task(sweep.recipe.task)[1]
    return len(splits["test"]), len(splits["validation"])


def too_many_of(sweep: Sweep) -> str | None:
    """What to say to more fine-tunings than the sweep's limit."""
    count = fine_tunings(sweep, cells_of(sweep))
    if count <= sweep.max_trials or sweep.trials is not None:  # a number that was said is wanted
        return None
    return (
        f"axes: {count:,} fine-tunings, more than {sweep.max_trials}; say --yes to run them all, give fewer --rank,"
        " --layers, --lr or --repeats, or let --search random --trials N choose among them"
    )


def intent(
    sweep: Sweep, gpu_memory: str | None = None, *, cost: bool = True, rows: tuple[int, int] | None = None
) -> str:
    """For people. `rows`: how many the test and the validation split have, once that is known."""
    told = counts(sweep, amount(gpu_memory or DEFAULT_MEMORY, "gpu-memory") if cost else None)
    names, rates = told["rows"], ", ".join(f"{rate:g}" for rate in told["learning_rates"])
    bound = ", one for teacher_tuned" if sweep.tuned_teacher else ""
    lines = [
        f"{told['teacher']} -> {told['student']} on {told['task']}",
        f"{_many(told['fine_tunings'], 'fine-tuning')}: {told['choosing']} choose settings on the validation split,"
        f" {told['compared']} are compared on the test split ({_many(len(names), 'row')},"
        f" {_many(sweep.repeats, 'random seed')} each{bound}).",
        f"Shared by all of them: {_shared(told)}.",
    ]
    if sweep.tasks:
        lines.append(
            f"Scored on {', '.join(map(str, sweep.tasks))}, too: the untouched student and each that is compared."
        )
    if sweep.trials and told["fine_tunings"] < sweep.trials:
        lines.append(
            f"Of {sweep.trials} trials no more are made, so that each arm tries as many settings as the others."
        )
    if cost:
        more = f"; and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        lines.insert(2, f"Rows: {'; '.join(names[:MOST_NAMES])}{more}. Learning rates: {rates}.")
        lines[3:3] = _finer(told)
        gpus = f"{_many(told['cost']['gpus'], 'GPU')} of {gpu_memory or DEFAULT_MEMORY}"
        lines.append(
            f"Cost by `pkt plan`, were it on {gpus}: {told['cost']['gpu_hours']:.2g} GPU-hours,"
            f" {duration(told['cost']['seconds'])}; {', '.join(['loading', *told['cost']['not_counted']])} not counted,"
            " nor CPUs known."
        )
    return "\n".join([*lines, *power(sweep, told["tries"], *(rows or rows_of(sweep)))])


def _finer(told: dict[str, Any]) -> list[str]:
    """Which arms have more learning rates between those that were given."""
    by: dict[tuple[float, ...], list[str]] = {}
    for arm, rates in told["finer_rates"].items():
        by.setdefault(tuple(rates), []).append(arm)
    return [
        f"{' and '.join(arms)}, with fewer rows: {', '.join(f'{rate:g}' for rate in rates)}; so each arm tries"
        f" {_many(told['tries'][arms[0]], 'setting')}."
        for rates, arms in by.items()
    ]


def power(sweep: Sweep, tries: dict[str, int], test: int | None, validation: int | None) -> list[str]:
    """What the comparison could show at all, by the terms that its verdict will have."""
    objections = beforehand(tries, sweep.baseline, max(sweep.repeats, ENOUGH_SEEDS))
    comparisons, open_to = len(objections), [pair for pair, why in objections.items() if not why]
    if not comparisons:
        return []
    lines = [
        f"warning: that {better} is better than {worse} can't be claimed: {why}."
        for (better, worse), why in objections.items() if why
    ]  # fmt: skip
    most = sweep.recipe.evaluate.examples
    test, validation = (min(filter(None, (most, count)), default=None) for count in (test, validation))
    rows = test or 10**9  # unknown: as if there were no end of them
    if sweep.repeats < ENOUGH_SEEDS:
        lines.append(
            f"{_many(sweep.repeats, 'random seed')} can describe, not claim: --repeats {ENOUGH_SEEDS} or more can."
        )
    elif open_to:
        least = [_least(one, sweep.repeats, rows, comparisons) for one in EXPECTED]
        effects = ", ".join(f"{one:.2f}" if one <= 1 else "over 1" for one in least)
        seeds = ", ".join(f"{one.seed:g}" for one in EXPECTED)
        who = "It" if len(open_to) == comparisons else f"Of {', '.join(map(' over '.join, open_to))} it"
        lines.append(
            f"{who} would claim, 4 times of 5, a true difference of {effects} where"
            f" trainings differ by {seeds} from seed to seed (standard deviation"
            f"{'' if test else '; more with few test rows'})."
        )
    faint = sweep.effect and sweep.effect < _least(EXPECTED[0], max(sweep.repeats, ENOUGH_SEEDS), rows, comparisons)
    if sweep.effect and faint and open_to:
        doubled = (sweep.repeats * 2**power for power in range(1, MOST_DOUBLINGS))
        enough = next((count for count in doubled if _least(EXPECTED[0], count, rows, comparisons) <= sweep.effect), 0)
        remedy = f"--repeats {enough} could" if enough else f"no --repeats can on {rows} test rows, more rows could"
        lines.append(
            f"warning: a difference of {sweep.effect:g} can't be shown so, even with steady trainings; {remedy}."
        )
    if sweep.effect and validation and (noise := 0.5 / validation**0.5) > sweep.effect:
        lines.append(
            f"warning: {validation} validation rows tell settings apart to about {noise:.2f}; for a difference of"
            f" {sweep.effect:g} the choice between settings is half luck."
        )
    return lines


def _least(spread: Spread, seeds: int, rows: int, comparisons: int) -> float:
    return smallest_effect(spread.expected(seeds, rows), comparisons)


def _shared(told: dict[str, Any]) -> str:
    kinds = {
        "teacher_passes": "teacher pass",
        "extractions": "extraction",
        "passes_for_distillation": "distillation pass",
        "updates_carried": "carried update",
    }
    return ", ".join(_many(told[key], what) for key, what in kinds.items() if told[key]) or "nothing"


def _many(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"
