"""`pkt extract`: a teacher's blocks as the start of a student's adapter."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cli import options as o
from cli import saying
from orchestrator.errors import UserError


def extract(
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    teacher: o.Teacher = None,
    student: o.Student = None,
    task: o.Task = None,
    data: o.Data = None,
    template: o.Template = None,
    seeds: o.Seeds = None,
    rank: Annotated[int | None, typer.Option(min=1)] = None,
    layers: o.Layers = None,
    structure: o.Structure = None,
    modules: o.Modules = None,
    set_: o.Set = None,
    store: o.StoreDir = o.STORE,
    ranks: o.Ranks = None,
    offload: o.Offload = None,
    tokens: o.Tokens = None,
    skip_bad: o.SkipBad = None,
    gpu_memory: o.GpuMemory = None,
    force: o.Force = False,
    address: o.Address = None,
    debug: o.Debug = False,
) -> int:
    """Measure the teacher, choose layers and blocks, factorise them, and write the adapter folder."""
    if address:
        from cli.jobs import forward

        return forward(address)
    if out.exists():
        raise UserError(f"out: {out} exists; name a folder that doesn't")
    flags = saying.models_and_task(teacher, student, task, data, template, seeds, skip_bad) | {
        "recipe.arm": "transfer", "recipe.rank": rank, "recipe.layers": layers, "recipe.structure": structure,
        "recipe.modules": modules and modules[0],
    }  # fmt: skip
    asked = saying.sweep_of(None, flags, {}, set_ or [])
    recipe = asked.recipe

    from cli.screen import Terminal
    from orchestrator.run import Run
    from orchestrator.store import Store

    kept = Store(store)
    kept.check()
    Store(out).check()
    screen, run = Terminal(), Run(store=store, ranks=ranks, offload=offload, tokens_at_once=tokens)
    with screen.lasting(o.finding(recipe)):
        from orchestrator import pipeline
        from orchestrator.models.portable import portable
        from orchestrator.prepare.ready import check, prepare
        from orchestrator.step import materialise
        from orchestrator.sweep.hands import placement_of, refuse_unless_shared

        refuse_unless_shared(kept)
        if asked.portable:
            portable()
        run = o.check_memory(recipe, ("measure", "extract"), run, screen.say, gpu_memory=gpu_memory, force=force)
        ready = prepare(recipe, screen.doing, seeds_alone=True)
        check(recipe, ready)
    step = pipeline.extract_step(recipe, ready, rank=recipe.rank)
    with kept.in_use():
        folder = materialise(step, kept, screen.track, placement_of(run))
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".pkt-", dir=out.parent))
        shutil.copytree(folder, aside, dirs_exist_ok=True)
    aside.chmod(0o755)
    aside.rename(out)
    typer.echo(
        f"{out}: factors of rank {recipe.rank} for {ready.student.name}; transfer.json says where they come from"
    )
    return 0
