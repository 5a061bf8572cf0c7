"""`pkt plan`: what a sweep takes, before anything is fetched or run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options as o
from cli import saying

if TYPE_CHECKING:
    from orchestrator.recipe import TaskChoice
    from orchestrator.sweep.plan import Forecast

STEPS = {
    "measure": "measure",
    "teacher_score": "score, the teacher",
    "extract": "extract",
    "tune": "tune the teacher",
    "read": "read texts",
    "ask": "ask the teacher",
    "scale": "choose a scale",
    "finetune": "fine-tune, a trial",
    "score": "score, a trial",
    "sweep": "the whole sweep",
}
MEMORY = ("weights", "activations", "statistics", "factors")


def plan(
    file: o.File = None,
    teacher: o.Teacher = None,
    student: o.Student = None,
    task: o.Task = None,
    data: o.Data = None,
    template: o.Template = None,
    metric: o.Metric = None,
    run_code: o.RunCode = None,
    judge: o.Judge = None,
    judge_model: o.JudgeModel = None,
    seeds: o.Seeds = None,
    tasks: o.Tasks = None,
    seed_tasks: o.SeedTasks = None,
    arms: o.Arms = None,
    rank: o.Rank = None,
    layers: o.Layers = None,
    structure: o.Structure = None,
    modules: o.Modules = None,
    lr: o.Lr = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Random seeds per row.")] = None,
    set_: o.Set = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many; by default as few as it takes.")] = None,
    gpu_memory: Annotated[str, typer.Option(help="Of each: 80GB.")] = "80GB",
    flops: Annotated[str, typer.Option(help="Achieved by each in bfloat16, a second.")] = "400T",
    bandwidth: Annotated[str, typer.Option(help="Bytes a second that each receives from the others.")] = "100GB",
    tokens: o.Tokens = None,
    workers_per_trial: o.WorkersPerTrial = None,
    shard_student: o.ShardStudent = False,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Tell memory, network, time and GPU-hours of each step from the models' configs and the rows' lengths.

    Nothing is loaded or fetched. Rows that are here (--data) are as long as the models' tokenizers say, if those are
    here too; otherwise every example is taken to be as long as it may be.
    """
    flags = saying.models_and_task(
        teacher, student, task, data, template, seeds, None, metric, run_code, judge, judge_model
    ) | {"repeats": repeats, "lr": saying.listed(lr), "tasks": saying.listed(tasks)}
    axes = saying.axes_of(arms, rank, layers, structure, modules, seed_tasks)
    sweep = saying.sweep_of(file, flags, axes, set_ or [])

    from cli.screen import Terminal
    from orchestrator.cluster.ranks import Placement
    from orchestrator.sweep.hardware import Hardware
    from orchestrator.sweep.lengths import lengths_for
    from orchestrator.sweep.plan import forecast

    amounts = (o.amount(gpu_memory, "gpu-memory"), o.amount(flops, "flops"), o.amount(bandwidth, "bandwidth"))
    shared: dict[str, Any] = {"workers": workers_per_trial or 1, "sharded": shard_student}
    hardware = Hardware(gpus, *amounts, tokens or Placement.tokens, fewer=tokens is None, **shared)
    with Terminal().lasting("reading the rows and what cuts them into tokens ..."):
        told = forecast(sweep, hardware, lengths_for(sweep))
    typer.echo(json.dumps(told.as_json()) if as_json else text(told, hardware, sweep.tasks))
    return 0


def text(told: Forecast, hardware: Any, beside: Sequence[TaskChoice] = ()) -> str:
    """For people: a line a step, then what it rests on."""
    teacher, student, sweep = told.teacher, told.student, told.steps["sweep"]
    lines = [
        f"{teacher.name} ({size(teacher.parameters)} parameters) -> {student.name} ({size(student.parameters)}),"
        f" {told.trials} fine-tunings, {told.scale}",
        f"{'':<20} {'GPUs':>5} {'peak/GPU':>10} " + " ".join(f"{part:>11}" for part in MEMORY)
        + f" {'sent':>9} {'time':>9} {'GPU-hours':>9}  fits",
    ]  # fmt: skip
    for name, title in STEPS.items():
        if cost := told.steps.get(name):
            parts = " ".join(f"{size(getattr(cost.per_rank, f'{part}_bytes')):>10}B" for part in MEMORY)
            lines.append(
                f"{title:<20} {cost.ranks:>5} {size(cost.per_rank.peak_bytes):>9}B {parts}"
                f" {size(cost.network_bytes):>8}B {duration(cost.seconds):>9} {cost.gpu_hours:>9.2f}"
                f"  {'yes' if cost.fits else 'NO'}"
            )
    if (tune := told.steps.get("tune")) and not tune.fits and not hardware.sharded:
        lines.append("The teacher is trained by one GPU here: --workers-per-trial N --shard-student shares it among N.")
    fitting = f"{sweep.smallest_cluster} GPU{'s'[: sweep.smallest_cluster - 1]}" if sweep.smallest_cluster else "none"
    lines += [f"can't be cut: {fault}" for fault in told.uncut]
    if told.held.tokens < hardware.tokens:
        lines.append(f"The teacher takes {told.held.tokens:,} tokens at once on a rank, as many as fit.")
    if told.replicated:
        lines.append("Each GPU holds the whole teacher, as it has room for it: nothing is gathered.")
    if told.recompute:
        lines.append(
            "Trainings compute activations again (finetune.gradient_checkpointing): half more time, less memory."
        )
    if beside:
        unknown = told.lengths.not_counted
        without = f" ({', '.join(unknown)} can't be counted here)" if unknown else ""
        lines.append(f"A trial's score is on {', '.join(map(str, beside))}, too{without}.")
    if told.recorded_bytes:
        lines.append(f"The second pass writes {size(told.recorded_bytes)}B to the store.")
    lines += [
        f"GPUs of {size(hardware.memory)}B, of which 92 % are used. Smallest cluster that fits: {fitting}.",
        f"Sent: to all GPUs together. Time: products at {size(hardware.flops)}FLOP/s a GPU, or sending at"
        f" {size(hardware.bandwidth)}B/s, whichever is longer;",
        f"{told.lengths}; loading not counted. Scoring: at least 30 ms for each token of a batch's answers.",
        "Computed from the configs; memory is checked against CPU runs (benchmarks/plan.py), nothing against a GPU.",
    ]
    return "\n".join(lines)


def size(number: float) -> str:
    """Three digits and a decimal prefix."""
    for unit, factor in reversed(o.UNITS.items()):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number / factor < 1000 else f"{number / factor:.0f} {unit}"
    return "0 "


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for unit, factor in (("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.2g} s"
