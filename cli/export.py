"""`pkt export`: an adapter in the forms that other people's tools open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options as o
from orchestrator.errors import UserError


def export(
    source: Annotated[
        str | None, typer.Argument(help="A folder with a LoRA adapter, or a sweep's name; by default the latest sweep.")
    ] = None,
    merged: Annotated[Path | None, typer.Option(help="Write a whole model there, the adapter merged in.")] = None,
    lora: Annotated[Path | None, typer.Option(help="Write the LoRA adapter there.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Compress that LoRA to this rank, and say the error.")] = None,
    pack: Annotated[
        Path | None, typer.Option(help="Write the LoRA in few bits there; `pkt export DIR` reads it.")
    ] = None,
    energy: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the update's energy that a pack keeps.")
    ] = 0.95,
    bits: Annotated[
        str, typer.Option(help="Of a pack's numbers, strongest directions first: of 2, 4, 8, 32.")
    ] = "8,4,2",
    prune: Annotated[
        bool, typer.Option("--prune", help="Leave embedding and head out of a pack, as GraftLLM does.")
    ] = False,
    lm_eval: Annotated[Path | None, typer.Option(help="Write its examples there, as a task for lm-eval.")] = None,
    arm: Annotated[
        str | None, typer.Option(help="The sweep's row of this arm, in place of the best one of all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="That row's trial of this random seed; by default 0.")] = None,
    student: Annotated[
        str | None, typer.Option(help="Where the student is now: alias, local folder or hub id.")
    ] = None,
    store: o.StoreDir = o.STORE,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Write an adapter as a whole model, as a LoRA of any rank, in few bits, or with its examples for lm-eval."""
    named = {"--merged": merged, "--lora": lora, "--pack": pack, "--lm-eval": lm_eval}
    targets = {option: path.expanduser() for option, path in named.items() if path}
    if not targets:
        raise UserError(
            "export: nothing to write was named; give --merged DIR, --lora DIR, --pack DIR or --lm-eval DIR"
        )
    if len({path.absolute() for path in targets.values()}) < len(targets):
        raise UserError(f"{list(targets)[-1]}: {targets[list(targets)[-1]]} is named twice; name a folder for each")
    if rank and not lora:
        raise UserError(f"rank: {rank} is for a LoRA, and none is written; add --lora DIR")

    from orchestrator.export import export as work
    from orchestrator.export import pack as packs
    from orchestrator.export.source import find_adapter
    from orchestrator.models.loading import resolve
    from orchestrator.store import Store
    from orchestrator.store.files import placing

    for option, path in targets.items():
        work.check_target(path, option.removeprefix("--"))
    widths = _widths(bits)
    if source and packs.is_pack(folder := Path(source).expanduser()):
        if set(targets) != {"--lora"} or rank:
            raise UserError(f"source: {source} is a pack, which becomes a LoRA again: give --lora DIR alone")
        with placing(targets["--lora"], "lora") as place:
            facts = packs.unpack(folder, place)
        told = f"{lora}: LoRA of rank {facts['rank']} for {facts['base']}, from a pack"
        typer.echo(json.dumps({"written": {"lora": {"folder": str(lora), **facts}}}) if as_json else told)
        return 0
    found = find_adapter(source, Store(store), arm=arm, seed=seed, student=student)
    typer.echo(f"taking {found.about}", err=True)
    whole = merged or lm_eval
    work.check_source(found, None, rank, asks=lm_eval is not None, packs=pack is not None)
    checkpoint = resolve(found.student, "student") if whole else None
    work.check_source(found, checkpoint, rank, asks=lm_eval is not None, packs=pack is not None)
    written: dict[str, Any] = {}
    if merged and checkpoint:
        written["merged"] = work.merge(found, checkpoint, targets["--merged"])
    if lora:
        written["lora"] = work.write_lora(found, targets["--lora"], rank)
    if pack:
        written["pack"] = packs.packed(found, targets["--pack"], energy, widths, prune)
    if lm_eval and checkpoint:
        adapter = found.folder if rank or not lora else targets["--lora"]  # the score is that of the whole one
        written["lm_eval"] = work.write_task(found, checkpoint, adapter, targets["--lm-eval"])
    if as_json:
        typer.echo(json.dumps({"adapter": str(found.folder), "facts": found.facts, "written": written}))
    else:
        for kind, facts in written.items():
            typer.echo("\n".join(_told(kind, facts, work.public_name(found.student))))
    return 0


def _widths(bits: str) -> list[int]:
    from orchestrator.export.pack import WIDTHS

    words = [word.strip() for word in bits.split(",")]
    if bad := next((word for word in words if word not in map(str, WIDTHS)), None):
        raise UserError(f"bits: {bad!r} is none of {', '.join(map(str, WIDTHS))}; say them as 8,4,2")
    return [int(word) for word in words]


def _told(kind: str, facts: dict[str, Any], student: str) -> list[str]:
    """What was written where, and how to use it."""
    folder = facts["folder"]
    if kind == "merged":
        untied = ", embedding and head untied" if facts["untied"] else ""
        use = f'AutoModelForCausalLM.from_pretrained("{folder}")'
        return [f"{folder}: {student} with the adapter merged in, {facts['dtype']}{untied}", f"  {use}"]
    if kind == "lora":
        lines = [f"{folder}: LoRA of rank {facts['rank']} for {student}"]
        if "error" in facts:
            lines[0] += f", compressed from {facts['of_rank']}" if facts["of_rank"] > facts["rank"] else ", as it was"
            worst = f"{facts['worst_error']:.3g} in {facts['worst_module']}"
            lines.append(
                f"  relative error of the update {facts['error']:.3g}, at worst {worst};"
                f" energy kept {facts['energy_kept']:.2%}"
            )
        return [*lines, f'  PeftModel.from_pretrained(student, "{folder}")']
    if kind == "pack":
        return [
            f"{folder}: {facts['bytes']:,} bytes, {facts['smaller']:.1f} times smaller than in float32,"
            f" relative error of the update {facts['error']:.3g}",
            f"  pkt export {folder} --lora DIR",
        ]
    score = f"{facts['metric']} {facts['score']:.4g} here" + (", with the student untied" if facts["untied"] else "")
    return [f"{folder}: task {facts['task']}, {facts['examples']} examples, {score}", f"  {facts['command']}"]
