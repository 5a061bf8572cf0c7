"""`pkt store`: what is kept, for which sweeps, and what may go."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options as o
from cli.plan import size
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.store import Store

app = typer.Typer(help="List, count and clear what results take on disk.", no_args_is_help=True)
AGES = (("d", 86400), ("h", 3600), ("min", 60))


@app.command()
def ls(store: o.StoreDir = o.STORE, as_json: o.Json = False, debug: o.Debug = False) -> int:
    """List every finished step, the largest first: its size, its age and the sweeps that build on it."""
    from orchestrator.sweep.kept import holdings

    there = sorted(holdings(_open(store)), key=lambda one: -one.bytes)
    if as_json:
        rows = [
            {"step": one.step, "key": one.folder.name, "bytes": one.bytes, "time": one.time, "sweeps": one.sweeps,
             "weights_gone": one.bare}
            for one in there
        ]  # fmt: skip
        typer.echo(json.dumps(rows))
        return 0
    for one in there:
        gone = " (weights gone)" if one.bare else ""
        name = f"{one.step}/{one.folder.name}"
        typer.echo(f"{size(one.bytes):>8}B {_age(one.time):>8}  {name:<32} {', '.join(one.sweeps) or '-'}{gone}")
    return 0


@app.command()
def du(store: o.StoreDir = o.STORE, as_json: o.Json = False, debug: o.Debug = False) -> int:
    """Count bytes by what they are and by sweep, and what `pkt store gc` would free."""
    from orchestrator.sweep.kept import clutter, holdings, usage

    kept = _open(store)
    there = holdings(kept)
    kinds, free = usage(kept, there), sum(one.bytes for one in clutter(kept, there))
    counts: dict[str, int] = defaultdict(int)
    sweeps: dict[str, int] = defaultdict(int)
    for one in there:
        counts[one.step] += 1
        for sweep in one.sweeps or ("",):
            sweeps[sweep] += one.bytes
    none = sweeps.pop("", 0)
    if as_json:
        places = {name: {"steps": counts.get(name), "bytes": taken} for name, taken in kinds.items()}
        typer.echo(json.dumps({"places": places, "sweeps": sweeps, "of_no_sweep": none, "gc_would_free": free}))
        return 0
    for name, taken in kinds.items():
        typer.echo(f"{size(taken):>8}B  {name:<18}{f' {counts[name]:>6} steps' if name in counts else ''}".rstrip())
    typer.echo(f"{size(sum(kinds.values())):>8}B  in all")
    typer.echo("By sweep, what several share with each:")
    for name, taken in sorted(sweeps.items(), key=lambda item: -item[1]):
        typer.echo(f"{size(taken):>8}B  {name}")
    typer.echo(f"{size(none):>8}B  of no sweep")
    typer.echo(f"`pkt store gc` would free {size(free)}B.")
    return 0


@app.command()
def gc(
    store: o.StoreDir = o.STORE,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only shown.")] = False,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Remove what no sweep of the store builds on: results of `pkt run`, too, and what killed processes left.

    What a sweep needs to be shown, exported or resumed stays. Nothing is removed while a sweep or a run is at work.
    """
    from orchestrator.sweep.kept import clutter, holdings

    kept = _open(store)
    if not yes:
        found = clutter(kept, holdings(kept))
    else:
        with kept.unused():
            found = clutter(kept, holdings(kept))
            for one in found:
                one.remove()
    free = sum(one.bytes for one in found)
    if as_json:
        rows = [{"path": str(one.path), "bytes": one.bytes, "why": one.why} for one in found]
        typer.echo(json.dumps({"removed": yes, "bytes": free, "clutter": rows}))
        return 0
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for one in found:
        groups[one.why, one.step].append(one)
    for (why, step), some in groups.items():
        typer.echo(f"{size(sum(one.bytes for one in some)):>8}B  {step:<12} {len(some):>6}  {why}")
    if yes or not found:
        typer.echo(f"{size(free)}B freed" if found else "nothing to remove")
    else:
        typer.echo(f"{size(free)}B would be freed: `pkt store ls` shows each step, --yes removes it")
    return 0


def _open(where: str) -> Store:
    from orchestrator.store import Store

    kept = Store(where)
    if kept.apart:
        raise UserError(f"store: {where} is listed and cleared by its own tools; these verbs are for folders")
    if not kept.root.is_dir():
        raise UserError(f"store: {kept.root} isn't there; name a folder that `pkt sweep` wrote with --store")
    return kept


def _age(when: float) -> str:
    passed = max(0.0, time.time() - when)
    unit, seconds = next((one for one in AGES if passed >= one[1]), ("s", 1))
    return f"{passed / seconds:.0f} {unit}"
