"""`pkt sweep`: the main job, from a teacher to a leaderboard."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cli import options as o
from orchestrator.errors import UserError


def sweep(
    file: o.File = None,
    teacher: o.Teacher = None,
    student: o.Student = None,
    task: o.Task = None,
    data: o.Data = None,
    template: o.Template = None,
    seeds: o.Seeds = None,
    arms: o.Arms = None,
    rank: o.Rank = None,
    layers: o.Layers = None,
    structure: o.Structure = None,
    modules: o.Modules = None,
    lr: o.Lr = None,
    repeats: Annotated[int | None, typer.Option(help="Random seeds of each row.", min=1)] = None,
    baseline: Annotated[str | None, typer.Option(help="The arm that others are compared with.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    set_: o.Set = None,
    store: o.StoreDir = o.STORE,
    tracking: o.Tracking = None,
    cpus_per_trial: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, help="Fractions share a GPU; by default 1.")] = None,
    trials_at_once: Annotated[int | None, typer.Option(min=1)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run more trials than the limit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and stop.")] = False,
    ranks: o.Ranks = None,
    offload: o.Offload = None,
    tokens: o.Tokens = None,
    skip_bad: o.SkipBad = None,
    gpu_memory: o.GpuMemory = None,
    force: o.Force = False,
    address: o.Address = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Measure the teacher once, extract, fine-tune and score every trial, and compare.

    Without arguments it runs the built-in demo; `pkt sweep --teacher llama2-70b` is complete too. The same command
    again goes on where it stopped, and recomputes nothing.
    """
    if address:
        from cli.jobs import forward

        return forward(address)
    flags = o.models_and_task(teacher, student, task, data, template, seeds, skip_bad) | {
        "name": name, "repeats": repeats, "baseline": baseline, "lr": o.listed(lr),
    }  # fmt: skip
    asked = o.sweep_of(file, flags, o.axes_of(arms, rank, layers, structure, modules), set_ or [])

    from cli.compare import show
    from cli.screen import Terminal
    from orchestrator.recipe import Run
    from orchestrator.store import Store
    from orchestrator.sweep import Plan, run_sweep

    screen = Terminal()
    Store(store).check()
    run = Run(
        store=store, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial, trials_at_once=trials_at_once,
        ranks=ranks, offload=offload, tokens_at_once=tokens,
    )  # fmt: skip
    if not dry_run:
        o.check_memory(asked, ("measure", "extract", "finetune"), run, gpu_memory=gpu_memory, force=force)
    plan = Plan.of(asked)
    if dry_run:
        typer.echo(json.dumps(summary(plan)) if as_json else text(plan))
        return 0
    if plan.trials > asked.max_trials and not yes:
        raise UserError(
            f"axes: {plan.trials} fine-tunings, more than {asked.max_trials};"
            " say --yes to run them all, or fewer --rank, --layers, --lr or --repeats"
        )
    ready = o.tracker_of(store, tracking) if tracking else None  # a wrong address is told before any work
    screen.say(text(plan))
    record = run_sweep(plan, run, lambda: ready or o.tracker_of(store, None), screen)
    show(record, Store(store), as_json=as_json, baseline=None)
    return 1 if record["failed"] else 0


def summary(plan: Any) -> dict[str, Any]:
    """What would run, counted."""
    return {
        "name": plan.name,
        "teacher": plan.ready.teacher.name,
        "student": plan.ready.student.name,
        "task": plan.ready.task.name,
        "rows": [cell.name() for cell in plan.cells],
        "fine_tunings": plan.trials,
        "extractions": len(plan.shared),
        "teacher_passes": len({step.inputs["measured"].fingerprint for step in plan.shared}),
    }


def text(plan: Any) -> str:
    """The same for people."""
    counts, sweep = summary(plan), plan.sweep
    tuning = f"{len(sweep.lr)} learning rates on the validation split, then " if len(sweep.lr) > 1 else ""
    return (
        f"{counts['name']}: {counts['teacher']} -> {counts['student']} on {counts['task']}\n"
        f"{len(counts['rows'])} rows, each {tuning}{sweep.repeats} random seeds on the test split:"
        f" {counts['fine_tunings']} fine-tunings over {counts['teacher_passes']} teacher pass"
        f" and {counts['extractions']} extractions"
    )
