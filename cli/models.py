"""`pkt models`: the aliases."""

from __future__ import annotations

import json

import typer

from cli import options as o


def models(as_json: o.Json = False) -> int:
    """List the aliases: what each stands for, and its natural student."""
    from orchestrator.models.aliases import ALIASES

    if as_json:
        typer.echo(json.dumps({name: {"source": row.source, "student": row.student} for name, row in ALIASES.items()}))
        return 0
    for name, row in ALIASES.items():
        typer.echo(f"{name:<16} {row.source:<42} {row.student or '-'}")
    typer.echo("Columns: alias, source, natural student. Any local folder or hub id of these families works, too:")
    from orchestrator.models.families import FAMILIES

    typer.echo("  " + ", ".join(sorted(FAMILIES)))
    return 0
