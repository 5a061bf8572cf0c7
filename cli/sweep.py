"""`pkt sweep`: the main job, from a teacher to a leaderboard."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli import options as o
from cli import saying
from orchestrator.errors import UserError


def sweep(
    context: typer.Context,
    file: o.File = None,
    teacher: o.Teacher = None,
    student: o.Student = None,
    task: o.Task = None,
    data: o.Data = None,
    template: o.Template = None,
    tasks: o.Tasks = None,
    seed_tasks: o.SeedTasks = None,
    metric: o.Metric = None,
    run_code: o.RunCode = None,
    judge: o.Judge = None,
    judge_model: o.JudgeModel = None,
    seeds: o.Seeds = None,
    arms: o.Arms = None,
    teacher_adapter: o.TeacherAdapter = None,
    teacher_base: o.TeacherBase = None,
    rank: o.Rank = None,
    layers: o.Layers = None,
    structure: o.Structure = None,
    modules: o.Modules = None,
    lr: o.Lr = None,
    search: Annotated[str | None, typer.Option(help="grid, or as many settings an arm: random, optuna, asha.")] = None,
    trials: Annotated[int | None, typer.Option(help="Fine-tunings in all, for such a search.", min=1)] = None,
    budget: Annotated[str | None, typer.Option(help="The same by what the plan says they cost: 8gpu-hours.")] = None,
    tuning_seeds: Annotated[int | None, typer.Option(help="Trainings that judge a setting.", min=1)] = None,
    repeats: Annotated[int | None, typer.Option(help="Random seeds of each row; a claim needs 6.", min=1)] = None,
    effect: Annotated[float | None, typer.Option(help="Smallest difference in score that would matter: 0.05")] = None,
    baseline: Annotated[str | None, typer.Option(help="The arm that others are compared with.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with the sweep of this name.", metavar="NAME")] = None,
    set_: o.Set = None,
    store: o.StoreDir = o.STORE,
    tracking: o.Tracking = None,
    cpus_per_trial: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_trial: Annotated[
        float | None, typer.Option(min=0, help="Fractions share a GPU, more than one share a training; by default 1.")
    ] = None,
    workers_per_trial: o.WorkersPerTrial = None,
    shard_student: o.ShardStudent = False,
    trials_at_once: Annotated[int | None, typer.Option(min=1)] = None,
    keep_tuned: Annotated[
        bool, typer.Option("--keep-tuned", help="Keep the weights of settings that were only tried, too.")
    ] = False,
    system_metrics: Annotated[bool, typer.Option("--system-metrics", help="Sample each trial's machine.")] = False,
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
    flags = saying.models_and_task(
        teacher, student, task, data, template, seeds, skip_bad, metric, run_code, judge, judge_model
    ) | {
        "name": name, "repeats": repeats, "baseline": baseline, "lr": saying.listed(lr), "search": search,
        "recipe.update.adapter": teacher_adapter, "recipe.update.base": teacher_base,
        "tasks": saying.listed(tasks), "trials": trials, "tuning_seeds": tuning_seeds, "effect": effect,
    }  # fmt: skip
    axes = saying.axes_of(arms, rank, layers, structure, modules, seed_tasks)

    from cli.compare import show
    from cli.intent import DEFAULT_MEMORY, afford, as_begun, intent, refuse_another, too_many_of
    from cli.screen import Terminal
    from orchestrator.run import Run
    from orchestrator.store import Store
    from orchestrator.sweep.plan import counts
    from orchestrator.verdict.words import room_lines

    screen = Terminal()
    kept = Store(store)
    begun = as_begun(kept, resume) if resume is not None else None
    asked = saying.sweep_of(file, flags, axes, set_ or [], begun)
    asked = afford(asked, budget) if budget else asked
    if begun:
        refuse_another(begun, asked)
        asked = begun
    too_many = too_many_of(asked) if not (yes or resume) else None  # what was begun was wanted
    if dry_run:
        memory = o.amount(gpu_memory or DEFAULT_MEMORY, "gpu-memory")
        with screen.lasting("counting ..."):
            told = json.dumps(counts(asked, memory)) if as_json else intent(asked, gpu_memory)
        typer.echo(told)
        if too_many:
            typer.echo(f"warning: {too_many}", err=True)
        return 0
    if too_many:
        raise UserError(too_many)

    kept.check()
    run = Run(
        store=store, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial, trials_at_once=trials_at_once,
        workers_per_trial=workers_per_trial, shard_student=shard_student,
        ranks=ranks, offload=offload, tokens_at_once=tokens,
        keep_tuned=keep_tuned, portable=asked.portable, system_metrics=system_metrics,
    )  # fmt: skip
    if run.workers > 1:
        whole = "a part of the student" if shard_student else "the whole student"
        screen.say(f"each fine-tuning is shared by {run.workers} workers, which hold {whole} each")
    steps = ("measure", "extract", "tune", "read", "ask", "finetune", "score")
    with screen.lasting(o.finding(asked.recipe)):
        from orchestrator.models.portable import portable
        from orchestrator.sweep.sweep import Plan, run_sweep

        if asked.portable:
            portable()
        run = o.check_memory(asked, steps, run, screen.say, gpu_memory=gpu_memory, force=force)
        plan = Plan.of(asked, screen.doing, run.gradient_checkpointing)
        ready = o.tracker_of(kept, tracking) if tracking else None  # a wrong address is told before any work
    rows = (len(plan.ready.splits["test"]), len(plan.ready.splits["validation"]))
    screen.say(f"{plan.name}: {intent(asked, cost=False, rows=rows)}")
    for line in room_lines({"fit": plan.ready.fit}):
        screen.warn(line)
    try:
        record = run_sweep(plan, run, lambda: ready or o.tracker_of(kept, None), screen, force=force)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"pkt sweep --resume {plan.name} {o.where_of(context)}".strip()) from None
    show(record, kept, as_json=as_json, baseline=None)
    return 1 if record["failed"] else 0
