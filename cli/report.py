"""`pkt report`: a sweep as one HTML file, with its verdict, its pictures and what they rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli import options as o


def report(
    sweep: o.SweepName = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default report.html in the sweep's folder.")
    ] = None,
    store: o.StoreDir = o.STORE,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Write a sweep's report: one HTML file that needs nothing else."""
    from orchestrator.errors import UserError
    from orchestrator.report.record import read_record, results
    from orchestrator.report.report import page
    from orchestrator.store import Store

    kept = Store(store)
    record = read_record(kept, sweep)
    path = out or kept.root / "sweeps" / record["name"] / "report.html"
    text = page(record, results(record, kept), kept)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"out: {path} can't be written ({error.strerror}); name another file with --out") from error
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))
    return 0
