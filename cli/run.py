"""`pkt run`: one trial, here and now, without a cluster."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli import options as o
from cli import saying


def run(
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
    arm: Annotated[str | None, typer.Option(help="lora, pissa, transfer (the default) or spectrum_control.")] = None,
    rank: Annotated[int | None, typer.Option(min=1)] = None,
    layers: o.Layers = None,
    structure: o.Structure = None,
    modules: o.Modules = None,
    lr: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The random seed.")] = None,
    set_: o.Set = None,
    store: o.StoreDir = o.STORE,
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
    """Measure, extract, fine-tune and score one student, and say where its adapter is."""
    if address:
        from cli.jobs import forward

        return forward(address)
    flags = saying.models_and_task(
        teacher, student, task, data, template, seeds, skip_bad, metric, run_code, judge, judge_model
    ) | {
        "recipe.arm": arm, "recipe.rank": rank, "recipe.layers": layers, "recipe.structure": structure,
        "recipe.modules": modules and modules[0], "recipe.lr": lr, "recipe.seed": seed,
    }  # fmt: skip
    asked = saying.sweep_of(file, flags, {}, set_ or [])
    recipe = asked.recipe.settled()

    from cli.screen import Terminal
    from orchestrator.run import Run
    from orchestrator.store import Store
    from orchestrator.verdict.words import room_lines

    kept = Store(store)
    kept.check()
    steps = ("measure", "extract") if recipe.arm.extracts else ()
    steps = (*steps, "tune", "read", "ask", "finetune", "score")
    screen, where = Terminal(), Run(store=store, ranks=ranks, offload=offload, tokens_at_once=tokens)
    with screen.lasting(o.finding(recipe)):
        from orchestrator import pipeline
        from orchestrator.models.portable import portable
        from orchestrator.prepare.ready import check, prepare
        from orchestrator.scoring.evaluate import read_metrics
        from orchestrator.sweep.alone import alone

        if asked.portable:
            portable()
        where = o.check_memory(recipe, steps, where, screen.say, gpu_memory=gpu_memory, force=force)
        ready = prepare(recipe, screen.doing, where.gradient_checkpointing)
        check(recipe, ready)
    for line in room_lines({"fit": ready.fit}):
        screen.warn(line)
    step = pipeline.trial(recipe, ready, "test")
    with kept.in_use():
        folder = alone(step, kept, where, screen)
    adapter = step.inputs["adapter"]
    result = {
        **read_metrics(folder),
        "adapter": str(kept.find(adapter.name, adapter.fingerprint)),
        "examples_file": str(folder / "examples.jsonl"),
    }
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"{result['score']:.3f} {result['metric']} on {result['examples']} test examples, one random seed")
        if result["cut"]:
            typer.echo(f"{result['cut']} answers had not ended after as many tokens as they may have")
        typer.echo(f"adapter: {result['adapter']}")
    return 0
