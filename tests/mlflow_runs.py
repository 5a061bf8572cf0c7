"""What tests put into an MLflow store, and how they read it back: with its own client."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from orchestrator.tracking.run_record import Record
from orchestrator.tracking.tracker import MlflowTracker

SWEEP = Record("sweep", "a sweep", params={"repeats": 3}, status="RUNNING", time_ms=1_700_000_000_000)


def tracker_at(uri: str, tmp_path: Path) -> MlflowTracker:
    local = tmp_path / "artifacts" if uri.startswith("sqlite") else None
    return MlflowTracker(uri, tmp_path / "outbox", local)


def runs_of(uri: str) -> dict[str, Any]:
    """By key; a key with two runs fails."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("pkt").experiment_id], max_results=1000)
    runs = {run.data.tags["pkt.id"]: run for run in found}
    assert len(runs) == len(found)
    return runs


def points_of(uri: str, key: str) -> dict[str, int]:
    run, client = runs_of(uri)[key], MlflowClient(uri)
    return {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}


def soon(holds: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Nobody:
    """A side that is down."""

    def send(self, record: Record) -> None:
        raise ConnectionError("down")

    def forget(self) -> None:
        pass
