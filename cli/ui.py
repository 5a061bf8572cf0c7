"""`pkt ui`: the MLflow server on loopback, at the sweep's store."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Annotated, Any

import typer

from cli import options as o
from orchestrator.errors import UserError


def ui(
    store: o.StoreDir = o.STORE,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    debug: o.Debug = False,
) -> int:
    """Open the MLflow UI on http://127.0.0.1:PORT until Ctrl-C."""
    from orchestrator.store import Store

    database = Store(store).root / "mlflow.db"
    if not database.is_file():
        raise UserError(f"store: {store} has no mlflow.db yet; run `pkt sweep` first, or name another --store")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port: {port} can't be had ({error.strerror}); name another --port") from error
    typer.echo(f"http://127.0.0.1:{port}/#/experiments/1/runs shows the sweeps' runs; Ctrl-C ends it", err=True)
    uri = f"sqlite:///{database}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # queues for its own language model features
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing of a store leaves the machine
    os.environ["PYTHONWARNINGS"] = "ignore::DeprecationWarning,ignore::UserWarning"  # MLflow's own, of its web library
    return _until_told_to_end(command)


def _until_told_to_end(command: list[str]) -> int:
    """The server's exit status; 0 where a signal ended it.

    Ctrl-C goes to every process of a terminal's group, and MLflow hands it on to its web server besides, which takes
    the second one for impatience and dies with a traceback. In a group of its own it is asked once, in other words.
    """
    server = subprocess.Popen(command, process_group=0)
    told: list[int] = []

    def end(number: int, _: Any) -> None:
        told.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # to the web server too: MLflow may not be handing on signals yet

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    status = server.wait()
    return 0 if told else status
