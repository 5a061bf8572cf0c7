"""`pkt ui`: the MLflow server on loopback, at the sweep's store."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import options as o
from orchestrator.errors import UserError


def ui(
    store: o.StoreDir = o.STORE,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    debug: o.Debug = False,
) -> int:
    """Open the MLflow UI on http://127.0.0.1:PORT until Ctrl-C."""
    database = store.expanduser().absolute() / "mlflow.db"
    if not database.is_file():
        raise UserError(f"store: {store} has no mlflow.db yet; run `pkt sweep` first, or name another --store")
    typer.echo(f"http://127.0.0.1:{port}/#/experiments/1/runs shows the sweeps' runs; Ctrl-C ends it", err=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # queues for its own language model features
    os.environ["PYTHONWARNINGS"] = "ignore::DeprecationWarning,ignore::UserWarning"  # MLflow's own, of its web library
    os.execv(sys.executable, command)  # the server takes this process's place, so that signals reach it
