"""`pkt compare`: the leaderboard, with intervals and paired differences."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options as o


def compare(
    sweep: o.SweepName = None,
    baseline: Annotated[
        str | None, typer.Option(help="The arm that others are compared with; by default the sweep's.")
    ] = None,
    store: o.StoreDir = o.STORE,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Show a sweep's leaderboard."""
    from orchestrator.report.record import read_record
    from orchestrator.store import Store

    kept = Store(store)
    show(read_record(kept, sweep), kept, as_json=as_json, baseline=baseline)
    return 0


def show(record: dict[str, Any], store: Any, *, as_json: bool, baseline: str | None) -> None:
    """Print the leaderboard on stdout."""
    from orchestrator.errors import UserError
    from orchestrator.report.record import results
    from orchestrator.verdict.estimates import leaderboard, told_apart_by
    from orchestrator.verdict.verdict import verdict_of

    asked, baseline = baseline, baseline or record["baseline"]
    found = results(record, store)
    if asked and asked not in (arms := sorted({row["label"] for row in record["rows"]})):
        raise UserError(f"baseline: {baseline!r} has no row in {record['name']}; rows: {', '.join(arms)}")
    rows, told = leaderboard(found, baseline), verdict_of(record, found, baseline)
    if as_json:
        answer = {
            "name": record["name"], "baseline": baseline, "metric": record["metric"], "rows": rows,
            "verdict": told.as_json(), "gate": record["gate"], "failed": list(record["failed"].values()),
        }  # fmt: skip
        typer.echo(json.dumps(answer))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['name']}: {record['task']}, {record['metric']}", title_justify="left", box=None)
    modules, further = told_apart_by(rows)
    names = ("arm", "layers", "structure", *modules)
    before = ["before"] if any("before" in row for row in rows) else []
    for column in (*names, "rank", "lr", *further, *before, "mean", "95 %", f"vs {baseline}", "95 %", "seeds"):
        table.add_column(column, justify="left" if column in names else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(row[name] or "-" for name in names), str(row["rank"] or "-"), _lr(row),
            *(str(row.get("other", {}).get(key, "-")) for key in further), *(_figure(row[key]) for key in before),
            f"{row['mean']:.3f}", _span(row["ci95"]), "-" if row["delta"] is None else f"{row['delta']:+.3f}",
            _span(row["delta_ci95"], "+"), str(row["seeds"]),
        )  # fmt: skip
    Console(width=max(140, Console().width)).print(table)
    for line in [*remarks(record, rows, baseline), "", *told.lines(), "", *footer(record, told, rows, store.address)]:
        typer.echo(line)


def remarks(record: dict[str, Any], rows: list[dict[str, Any]], baseline: str) -> list[str]:
    """What to know before reading the figures."""
    from orchestrator.tasks import TASKS
    from orchestrator.verdict.words import about_rows, also_line, clipped_line, cut_line, gate_line, room_lines

    task = [f"{record['task']}: {TASKS[record['task']].about}."] if record["task"] in TASKS else []
    about = about_rows(rows, baseline)
    lines = [*task, *about, *also_line(rows), *clipped_line(rows), f"Gate: {gate_line(record['gate'])}."]
    lines += [*room_lines(record), *filter(None, [cut_line(rows)])]
    if failed := record["failed"]:
        first = next(iter(failed.values()))
        lines.append(f"{len(failed)} failed; the first: {first['label']}: {first['reason']}")
    if any(row["lr_at_edge"] for row in rows):
        lines.append("* on the edge of the learning rates that were tried")
    return lines


def footer(record: dict[str, Any], told: Any, rows: list[dict[str, Any]], store: str) -> list[str]:
    """What the verdict rests on, and where to look further."""
    from orchestrator.verdict.words import how_chosen

    where = "" if store == str(Path(o.STORE).absolute()) else f" --store {shlex.quote(store)}"
    name = record["name"]
    verbs = (f"report {name}", f"compare {name} --json", "ui", f"export {name} --lora DIR")
    tried, how = record.get("tried", {}), how_chosen(told.twins)
    chosen = [
        f"  {arm}: {settings} (of {max(tried.get(arm, 1), 1)} tried){_other_row(arm, told.scores[arm], rows)}"
        for arm, settings in told.chosen.items()
    ]
    counts = {max(tried.get(arm, 1), 1) for arm in told.chosen}
    if told.grid() and len(counts) == 1 and len({row["arm"] for row in rows}) == len(rows):
        chosen = [f"  of {counts.pop()} tried, the one in its row"]  # many ways, whose settings have been told
    return [
        *([f"Each arm was taken at its {how}:", *chosen] if chosen else []),
        "One task and one pair of models: no evidence for others.",
        f"Look further: {'   |   '.join(f'pkt {verb}{where}' for verb in verbs)}",
    ]


def _other_row(arm: str, score: float, rows: list[dict[str, Any]]) -> str:
    """That another row of the arm did better on the test split, which must not choose, but should be seen."""
    best = max(row["mean"] for row in rows if row["arm"] == arm)
    return f"; test {score:.3f}, another row of it {best:.3f}, which wasn't chosen" if best > score else ""


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _lr(row: dict[str, Any]) -> str:
    return "-" if row["lr"] is None else f"{row['lr']:g}" + ("*" if row["lr_at_edge"] else "")


def _span(limits: list[float] | None, sign: str = "") -> str:
    return "-" if limits is None else f"[{limits[0]:{sign}.3f}, {limits[1]:{sign}.3f}]"
