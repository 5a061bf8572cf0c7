"""What a whole sweep takes, told before a byte of weights is loaded.

forecast(sweep, Hardware(gpus=8, memory=80e9)).steps["measure"].fits
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.anatomy import Anatomy
from orchestrator.cells import (
    cells_of,
    check_rungs,
    fine_tunings,
    groups_of,
    rates_of,
    seeds_of,
    shared_by,
    tries_of,
    whole_trainings,
)
from orchestrator.cluster import gpus
from orchestrator.cluster.ranks import Placement
from orchestrator.cluster.session import connected, cores, nodes
from orchestrator.costs import (
    USABLE,
    Cost,
    Hardware,
    extract_cost,
    finetune_cost,
    measure_cost,
    recorded_bytes,
    score_cost,
)
from orchestrator.errors import UserError
from orchestrator.lengths import Lengths, lengths_of
from orchestrator.models.families import too_small
from orchestrator.native import workers_have_bfloat16
from orchestrator.recipe import Run, Sweep
from orchestrator.scale import Scale, scale_of
from orchestrator.shapes import check_shapes
from orchestrator.steps.compare import BOUNDS

LARGEST_CLUSTER = 1024
STEPS = ("measure", "extract", "finetune", "score", "sweep")


@dataclass(frozen=True)
class Forecast:
    """What a sweep takes, step by step."""

    teacher: Anatomy
    student: Anatomy
    scale: Scale
    trials: int
    uncut: tuple[str, ...]
    recorded_bytes: int  # what the second pass of exact windows writes to the store, for extraction to read
    steps: dict[str, Cost]  # by name: measure, extract where all can be cut, finetune and score (one trial), sweep
    lengths: Lengths
    tokens: int  # that a rank takes through the teacher at once
    choosing: Cost  # a trial's score on the validation split, which chooses

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        names = {"teacher": self.teacher, "student": self.student}
        return {
            **{who: {"name": model.name, "parameters": model.parameters} for who, model in names.items()},
            "granularity": 1 if self.scale.exact else self.scale.granularity,
            "passes": 2 if self.scale.exact else 1,
            "trials": self.trials,
            "uncut": list(self.uncut),
            "recorded_bytes": self.recorded_bytes,
            "longest": {
                "seed": max(row.tokens for row in self.lengths.seed),
                "train": max(row.tokens for row in self.lengths.train),
            },
            "unknown": self.lengths.unknown or None,
            "tokens_at_once": self.tokens,
            "choosing_gpu_hours": self.choosing.gpu_hours,
            "steps": {name: self.steps[name].as_json() if name in self.steps else None for name in STEPS},
        }


def forecast(sweep: Sweep, hardware: Hardware, lengths: Lengths | None = None) -> Forecast:
    """Every step of a sweep; without `lengths` every example is as long as it may be.

    UserError for models whose config can't be had.
    """
    recipe, cells = sweep.recipe, cells_of(sweep)
    teacher = Anatomy.of(recipe.teacher, "teacher", recipe.measure.dtype, native=hardware.native)
    student = Anatomy.of(recipe.student, "student", recipe.finetune.dtype, native=hardware.native)
    scale = scale_of(recipe.measure, teacher.geometry, student.geometry)
    rank, trials = max(cell.recipe.rank for cell in cells), fine_tunings(sweep, cells)
    lengths = lengths or Lengths.longest(recipe)

    def measured(tokens: int) -> Cost:
        room = replace(hardware, tokens=tokens)
        return _sized(lambda ranks: measure_cost(teacher, recipe, scale, ranks, room, lengths), hardware.gpus)

    tokens = hardware.tokens
    if hardware.fewer and hardware.gpus:
        halves = [tokens >> times for times in range(tokens.bit_length())]
        tokens = next((some for some in halves if measured(some).fits), tokens)
    measure = measured(tokens)
    gpus = hardware.gpus or measure.ranks
    training = finetune_cost(student, recipe, rank, hardware, lengths)
    steps = {"measure": measure, "finetune": _alone(training, hardware.workers)}
    steps["score"], choosing = (
        _alone(score_cost(student, lengths, rows, rank, hardware)) for rows in (lengths.test, lengths.validation)
    )
    uncut = tuple(too_small(teacher.geometry, student.geometry, recipe.modules or ()))
    if not uncut:
        steps["extract"] = _alone(extract_cost(teacher, student, recipe, scale, gpus, hardware, lengths))
    needs = [cost.smallest_cluster for cost in steps.values()]
    smallest = None if None in needs else max(need for need in needs if need)
    shared = shared_by(sweep, cells)
    compared = sum(len(seeds_of(sweep, group.cells[0])) for group in groups_of(sweep, cells))
    times = {
        "measure": shared["teacher passes"] + shared["passes for distillation"],  # which take as long by design
        "extract": shared["extractions"],
        "finetune": math.ceil(whole_trainings(sweep, trials) / max(1, gpus // hardware.workers)),
        "score": math.ceil((compared + 2) / gpus),  # and both models as they are
    }
    seconds = sum(times[name] * cost.seconds for name, cost in steps.items())
    seconds += math.ceil((trials - compared) / gpus) * choosing.seconds
    fullest = max(steps.values(), key=lambda cost: cost.per_rank.peak_bytes)
    network = sum(cost.network_bytes for cost in steps.values())
    steps["sweep"] = Cost(gpus, fullest.per_rank, network, seconds, hardware.memory, smallest)
    recorded = recorded_bytes(teacher, student, recipe, lengths) if scale.exact else 0
    return Forecast(teacher, student, scale, trials, uncut, recorded, steps, lengths, tokens, choosing)


def counts(sweep: Sweep, memory: float | None) -> dict[str, Any]:
    """What would run, counted, and what it would cost on GPUs of this many bytes, where that is asked.

    UserError for what models of these shapes can't do.
    """
    cells = cells_of(sweep)
    groups = groups_of(sweep, cells)
    for cell in cells:
        check_rungs(sweep, cell)
    told: dict[str, Any] = {
        "teacher": sweep.recipe.teacher,
        "student": sweep.recipe.student,
        "task": sweep.recipe.task.name,
        "rows": [group.cells[0].name() if len(group.cells) == 1 else group.cells[0].label for group in groups],
        "learning_rates": rates_of(sweep),
        "tries": tries_of(sweep, cells),
        "finer_rates": {
            group.cells[0].label: list(group.rates) for group in groups if len(group.rates) > len(rates_of(sweep))
        },
        "fine_tunings": fine_tunings(sweep, cells),
        "choosing": sum(group.searched for group in groups) * sweep.tuning_seeds,
        "compared": sum(len(seeds_of(sweep, group.cells[0])) for group in groups),
        **{name.replace(" ", "_"): count for name, count in shared_by(sweep, cells).items()},
        "comparisons": len({cell.label for cell in cells} - {*BOUNDS}) - 1,
    }
    if memory:
        plan = forecast(sweep, Hardware(memory=memory), lengths_of(sweep.recipe))
        for cell in cells:
            if cell.who == "student":
                check_shapes(cell.recipe, plan.teacher.family, plan.teacher.geometry, plan.student.geometry)
        whole = plan.steps["sweep"]
        hours, seconds = whole.gpu_hours, whole.seconds
        told["cost"] = {"gpus": whole.ranks, "gpu_memory": memory, "gpu_hours": hours, "seconds": seconds}
    return told


def _sized(cost: Callable[[int], Cost], ranks: int | None) -> Cost:
    """The step on the ranks that there are, or on as few as it fits on; with that number noted."""
    smallest = next((count for count in range(1, LARGEST_CLUSTER + 1) if cost(count).fits), None)
    return replace(cost(ranks or smallest or 1), smallest_cluster=smallest)


def _alone(cost: Cost, least: int = 1) -> Cost:
    """A step whose memory doesn't depend on how many ranks share its work, be they as many as it asks for at least."""
    return replace(cost, smallest_cluster=least if cost.fits else None)


def here(run: Run, memory: float | None) -> Hardware | None:
    """What this machine or its cluster has for the ranks; None for a cluster without GPUs, or that doesn't tell.

    `memory` is what each GPU has, where that is said.
    """
    import psutil

    found = Hardware(
        tokens=run.tokens_at_once or Placement.tokens, fewer=run.tokens_at_once is None, offload=bool(run.offload),
        native=workers_have_bfloat16(), workers=run.workers, sharded=run.shard_student,
    )  # fmt: skip
    ranks, remote = run.ranks, bool(os.environ.get("RAY_ADDRESS"))
    with connected() if remote else nullcontext():
        count = int(sum(node.get("GPU", 0) for node in nodes())) - gpus.assigned() if remote else gpus.local()
        if count and not memory:
            memory = gpus.memory_of_nodes() if remote else gpus.memory(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if memory:
        share = min(1.0, run.gpus_per_trial or 1.0)  # of a GPU
        return replace(found, gpus=ranks or count or None, memory=memory, trial=memory * share)
    if count:
        logging.getLogger("pkt").warning("no GPU tells its memory, so that none is checked; say it with --gpu-memory")
    if count or remote:
        return None
    own = psutil.virtual_memory().total
    trial = own / (run.trials_at_once or 1) / run.workers
    return replace(found, gpus=ranks or 1, memory=own / (ranks or 1), cuda=False, trial=trial)


def within(run: Run, told: Forecast, hardware: Hardware) -> Run:
    """With as many tokens and, without GPUs, as many trials at once as there is memory for, where that wasn't said."""
    fewer: dict[str, int] = {}
    if told.tokens < hardware.tokens:
        fewer["tokens_at_once"] = told.tokens
    if not hardware.cuda and run.trials_at_once is None:
        room = USABLE * (hardware.trial or hardware.memory)
        trial = max(told.steps[name].per_rank.peak_bytes for name in ("finetune", "score"))
        if (fitting := max(1, int(room // trial))) < max(1, cores() // run.cpus_per_trial // run.workers):
            fewer["trials_at_once"] = fitting
    return run.model_copy(update=fewer)


def refuse_unless_fits(cost: Cost, what: str, assumed: str = "") -> None:
    """UserError with the figures, and with what was `assumed`, where a step would run out of memory."""
    if cost.fits:
        return
    need, room = cost.per_rank.peak_bytes, USABLE * cost.memory
    where = "on 1 rank" if cost.ranks == 1 else f"on each of {cost.ranks} ranks"
    remedy = "a smaller --tokens-at-once, finetune.micro_batch_size or max_tokens takes less"
    if cost.smallest_cluster:
        remedy = f"{cost.smallest_cluster} ranks with as much memory each would do (see `pkt plan`)"
    raise UserError(
        f"plan: {what} takes {need / 1e9:.1f} GB {where}, of which {room / 1e9:.1f} GB are usable"
        f"{f' ({assumed})' if assumed else ''}; {remedy}, and --force goes on all the same"
    )
