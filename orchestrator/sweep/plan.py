"""What a whole sweep takes, told before a byte of weights is loaded.

forecast(sweep, Hardware(gpus=8, memory=80e9)).steps["measure"].fits
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.models.families import too_small
from orchestrator.prepare.shapes import check_shapes
from orchestrator.recipe import Sweep, TaskChoice
from orchestrator.scoring import budgets
from orchestrator.sweep.anatomy import Anatomy
from orchestrator.sweep.cells import cells_of, check_rungs
from orchestrator.sweep.costs import (
    extract_cost,
    finetune_cost,
    judge_cost,
    measure_cost,
    recorded_bytes,
    scale_cost,
    score_cost,
    teacher_score_cost,
)
from orchestrator.sweep.groups import (
    fine_tunings,
    groups_of,
    labelled,
    rates_of,
    share_of_a_try,
    shared_by,
    trainings_of,
    tries_of,
)
from orchestrator.sweep.hardware import Cost, Hardware
from orchestrator.sweep.lengths import Lengths, Row, lengths_for
from orchestrator.sweep.reading_cost import forward_passes
from orchestrator.teacher.scale import Scale, scale_of
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import Carried
from orchestrator.verdict.asked import counted, questions

LARGEST_CLUSTER = 1024
STEPS = ("measure", "teacher_score", "extract", "tune", "read", "ask", "scale", "finetune", "score", "sweep")


@dataclass(frozen=True)
class Forecast:
    """What a sweep takes, step by step."""

    teacher: Anatomy
    student: Anatomy
    scale: Scale
    trials: int
    uncut: tuple[str, ...]
    recorded_bytes: int  # what the second pass of exact windows writes to the store, for extraction to read
    # By name, of STEPS: extract where all can be cut, tune, read, ask and scale where an arm or the gate asks for it;
    # tune, scale, finetune and score are one trial's
    steps: dict[str, Cost]
    lengths: Lengths
    held: Hardware  # how the ranks hold the teacher, and what each takes through it at once
    choosing: Cost  # a trial's score on the validation split, which chooses
    recompute: bool  # whether trainings compute their layers' activations again

    @property
    def replicated(self) -> bool:
        """Whether each of several ranks holds the whole teacher."""
        return self.held.replicate and self.steps["teacher_score"].ranks > 1

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
            "not_counted": self.lengths.not_counted,
            "tokens_at_once": self.held.tokens,
            "answers_at_once": self.held.answers,
            "replicated": self.replicated,
            "gradient_checkpointing": self.recompute,
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
    of_teacher, of_student = (trainings_of(sweep, cells, who) for who in ("teacher", "student"))
    lengths = lengths or Lengths.longest(recipe)

    def measured(ranks: int, held: Hardware) -> Cost:
        return measure_cost(teacher, recipe, scale, ranks, held, lengths)

    def scored(ranks: int, held: Hardware) -> Cost:
        return teacher_score_cost(teacher, lengths, lengths.test, ranks, held)

    @functools.cache  # a judge's config is read once
    def judge(name: str) -> Anatomy:
        return Anatomy.of(name, "judge-model", native=hardware.native)

    def judged(cost: Cost, rows: Sequence[Row], task: TaskChoice = recipe.task, of: Lengths = lengths) -> Cost:
        if task.own_judge is None:
            return cost
        return cost.then(judge_cost(judge(task.own_judge), of, rows, hardware, cost.memory))

    held = _holding(hardware, measured, scored)
    measure = _sized(lambda ranks: measured(ranks, held), hardware.gpus)
    gpus, few = hardware.gpus or measure.ranks, replace(held, answers=1)
    enough = _smallest(lambda ranks: scored(ranks, few), measure.smallest_cluster or LARGEST_CLUSTER)
    asking = judged(replace(scored(gpus, held), smallest_cluster=enough), lengths.test)
    steps = {"measure": measure, "teacher_score": asking}
    rank = max(cell.recipe.rank for cell in cells if cell.who == "student")
    theirs = [cell.recipe for cell in cells if cell.trains_teacher]

    def trained(recompute: bool) -> dict[str, Cost]:
        own = {"finetune": finetune_cost(student, recipe, rank, hardware, lengths, recompute=recompute)}
        each = [finetune_cost(teacher, one, one.rank, hardware, lengths, recompute=recompute) for one in theirs]
        return own | ({"tune": _typical(each)} if each else {})

    ways = [trained(recompute) for recompute in (False, True)]
    said = recipe.finetune.gradient_checkpointing
    recompute = hardware.cuda and not ways[0]["finetune"].fits if said == "auto" else said
    again = {"finetune": recompute, "tune": hardware.cuda if said == "auto" else recompute}
    steps |= {name: _alone(ways[again[name]][name], hardware.workers) for name in ways[0]}
    forward = forward_passes(recipe, cells, teacher, student, held, lengths)
    steps |= {name: _sized(cost, gpus) for name, (_, cost) in forward.items()}
    steps["score"], choosing = (
        _alone(judged(score_cost(student, lengths, rows, rank, hardware), rows))
        for rows in (lengths.test, lengths.validation)
    )
    for task, other in lengths.counted:
        there = judged(score_cost(student, other, other.test, rank, hardware), other.test, task, other)
        steps["score"] = steps["score"].then(there)
    shared = shared_by(sweep, cells)
    by_role = shared["scales by role"]
    if scaled := shared["scales chosen"]:
        tried = len(recipe.carry.scales)
        once, more = (
            _alone(scale_cost(student, lengths, rank, hardware, tried, by_role=each)) for each in (False, True)
        )
        seconds = (once.seconds * (scaled - by_role) + more.seconds * by_role) / scaled
        steps["scale"] = replace(once, seconds=seconds)
    uncut = tuple(too_small(teacher.geometry, student.geometry, recipe.modules or ()))
    if not uncut:
        steps["extract"] = _alone(extract_cost(teacher, student, recipe, scale, gpus, hardware, lengths))
    needs = [cost.smallest_cluster for cost in steps.values()]
    smallest = None if None in needs else max(need for need in needs if need)
    share, at_once = share_of_a_try(sweep), max(1, gpus // hardware.workers)
    sizes = (teacher.geometry.weights, student.geometry.weights)
    longer = statistics.fmean(cell.recipe.longer(*sizes) for cell in cells if cell.who == "student")
    equal = sum(rows == "equal" for rows, *_ in labelled(cells))  # as long as measuring by design
    times = {
        "measure": shared["teacher passes"] + equal,
        "extract": shared["extractions"],
        "tune": math.ceil(of_teacher.whole(share) / at_once),
        **{name: count for name, (count, _) in forward.items()},
        "scale": math.ceil(shared["scales chosen"] / gpus),
        "finetune": math.ceil(longer * of_student.whole(share) / at_once),
        "teacher_score": 1 + sum(of_teacher),
        "score": math.ceil((of_student.compared + 1) / gpus),  # and the student as it is
    }
    seconds = sum(times[name] * cost.seconds for name, cost in steps.items())
    seconds += math.ceil(of_student.choosing / gpus) * choosing.seconds
    fullest = max(steps.values(), key=lambda cost: cost.per_rank.peak_bytes)
    network = sum(cost.network_bytes for cost in steps.values())
    steps["sweep"] = Cost(gpus, fullest.per_rank, network, seconds, hardware.memory, smallest)
    recorded = recorded_bytes(teacher, student, recipe, lengths) if scale.exact else 0
    trials = sum((*of_teacher, *of_student))
    return Forecast(teacher, student, scale, trials, uncut, recorded, steps, lengths, held, choosing, recompute)


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
        **trainings_of(sweep, cells)._asdict(),
        **{name.replace(" ", "_"): count for name, count in shared_by(sweep, cells).items()},
        "comparisons": counted(questions(list(dict.fromkeys(cell.label for cell in cells)), sweep.baseline)),
    }
    if memory:
        lengths = lengths_for(sweep)
        plan = forecast(sweep, Hardware(memory=memory), lengths)
        for cell in cells:
            if cell.who == "student":
                check_shapes(cell.recipe, plan.teacher.family, plan.teacher.geometry, plan.student.geometry)
        whole = plan.steps["sweep"]
        hours, seconds = whole.gpu_hours, whole.seconds
        told["cost"] = {"gpus": whole.ranks, "gpu_memory": memory, "gpu_hours": hours, "seconds": seconds}
        told["cost"]["not_counted"] = lengths.not_counted + _uncounted(told["tries"])
    return told


def _uncounted(kinds: Iterable[str]) -> list[str]:
    """What arms take that no step of the plan is for: controls take what their arms do."""
    known = [kind for kind in kinds if kind in ARMS and not ARMS[kind].is_control]
    ways = [kind for kind in known if {*ARMS[kind].needs} - {"factors", "labels", "excess"}]
    maps = [kind for kind in ways if issubclass(ARMS[kind], Carried)]
    others = [kind for kind in ways if kind not in maps]
    told = {"the maps of": maps, "what else is made for": others}
    return [f"{what} {', '.join(some)}" for what, some in told.items() if some]


def _holding(
    hardware: Hardware, measured: Callable[[int, Hardware], Cost], scored: Callable[[int, Hardware], Cost]
) -> Hardware:
    """How the teacher is held: whole by each rank that has room for it, as gathering shards would be for nothing.

    With as many tokens at once as fit; and with the largest batches of answers, each of whose tokens costs a gather.
    """
    tokens = hardware.tokens
    halves = range(tokens.bit_length() if hardware.fewer and hardware.gpus else 1)
    ways = [
        replace(hardware, tokens=tokens >> times, replicate=whole)
        for times in halves
        for whole in (not hardware.offload, False)
    ]

    def ranks(held: Hardware) -> int:
        return held.gpus or _smallest(lambda count: measured(count, held)) or 1

    def fits(held: Hardware) -> bool:
        count = ranks(held)
        return measured(count, held).fits and (not held.replicate or scored(count, held).fits)

    held = next(filter(fits, ways), hardware)
    if not hardware.cuda:
        return held
    count = ranks(held)
    larger = (replace(held, answers=budgets.MOST >> times) for times in range(budgets.MOST.bit_length()))
    return next((one for one in larger if scored(count, one).fits), held)


def _smallest(cost: Callable[[int], Cost], least: int = 1) -> int | None:
    """On how few ranks a step fits, from `least` on; None where on none."""
    return next((count for count in range(least, LARGEST_CLUSTER + 1) if cost(count).fits), None)


def _sized(cost: Callable[[int], Cost], ranks: int | None) -> Cost:
    """The step on the ranks that there are, or on as few as it fits on; with that number noted."""
    smallest = _smallest(cost)
    return replace(cost(ranks or smallest or 1), smallest_cluster=smallest)


def _typical(costs: Sequence[Cost]) -> Cost:
    """The memory of the fullest, for as long as they take on average."""
    fullest = max(costs, key=lambda cost: cost.per_rank.peak_bytes)
    return replace(fullest, seconds=statistics.fmean(cost.seconds for cost in costs))


def _alone(cost: Cost, least: int = 1) -> Cost:
    """A step whose memory doesn't depend on how many ranks share its work, be they as many as it asks for at least."""
    return replace(cost, smallest_cluster=least if cost.fits else None)
