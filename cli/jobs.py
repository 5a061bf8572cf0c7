"""`pkt jobs`: sweeps on a remote cluster, as Ray Jobs."""

from __future__ import annotations

import typer

app = typer.Typer(help="List, read and stop jobs on a Ray cluster.", no_args_is_help=True)


@app.callback()
def _jobs() -> None:
    """List, read and stop jobs on a Ray cluster."""


def forward(address: str) -> int:
    """Placeholder until the jobs module lands."""
    raise NotImplementedError
