"""MLflow as the record that people look at: one parent run a sweep, one child run a trial.

    tracker = MlflowTracker("sqlite:///pkt-store/mlflow.db")
    parent = tracker.open("sweep-fingerprint", "demo", params, None)

A run's identity is its tag `pkt.id`, a fingerprint: opening one that exists goes on with it, so that a repeated or
resumed sweep never makes a second run for the same trial. Only the driver writes, from what trials left in the store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

EXPERIMENT = "pkt"
Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING"]


class Tracker(Protocol):
    """What a sweep tells of itself."""

    def finished(self, key: str) -> bool:
        """Whether the run of this key is there and complete."""

    def open(self, key: str, name: str, params: Mapping[str, Any], parent: str | None) -> str:
        """A run's id: found by its key, or made."""

    def metrics(self, run: str, values: Mapping[str, float]) -> None:
        """Final figures."""

    def curve(self, run: str, name: str, points: Iterable[tuple[int, float]]) -> None:
        """A figure by step."""

    def artifacts(self, run: str, folder: Path, under: str) -> None:
        """A folder's files."""

    def close(self, run: str, status: Status) -> None:
        """The run's end."""


class NullTracker:
    """For whoever wants no record but the store."""

    def finished(self, key: str) -> bool:
        """Nothing is left to tell."""
        return True

    def open(self, key: str, name: str, params: Mapping[str, Any], parent: str | None) -> str:
        """Nothing is opened."""
        return ""

    def metrics(self, run: str, values: Mapping[str, float]) -> None:
        """Nothing is kept."""

    def curve(self, run: str, name: str, points: Iterable[tuple[int, float]]) -> None:
        """Nothing is kept."""

    def artifacts(self, run: str, folder: Path, under: str) -> None:
        """Nothing is kept."""

    def close(self, run: str, status: Status) -> None:
        """Nothing is open."""


class MlflowTracker:
    """An MLflow store by its client: sqlite in the sweep's own store by default, or a server."""

    def __init__(self, uri: str, artifacts: Path | None = None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # the schema's migrations, line by line
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        location = artifacts.absolute().as_uri() if artifacts else None
        self._experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT, location)
        self._finished: set[str] = set()
        self._runs: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                if key := run.data.tags.get("pkt.id"):
                    self._runs[key] = run.info.run_id
                    if run.info.status == "FINISHED":
                        self._finished.add(run.info.run_id)
            token = page.token
            if not token:
                break

    def finished(self, key: str) -> bool:
        """Whether the run of this key is there and complete."""
        return self._runs.get(key) in self._finished

    def open(self, key: str, name: str, params: Mapping[str, Any], parent: str | None) -> str:
        """A run's id: found by its key, or made."""
        if run_id := self._runs.get(key):
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        from mlflow.entities import Param

        tags = {"pkt.id": key} | ({"mlflow.parentRunId": parent} if parent else {})
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        texts = [Param(field, str(value)[:6000]) for field, value in params.items()]
        self._client.log_batch(run.info.run_id, params=texts)
        self._runs[key] = run.info.run_id
        return run.info.run_id

    def metrics(self, run: str, values: Mapping[str, float]) -> None:
        """Final figures."""
        self._log(run, [(name, value, 0) for name, value in values.items()])

    def curve(self, run: str, name: str, points: Iterable[tuple[int, float]]) -> None:
        """A figure by step."""
        self._log(run, [(name, value, step) for step, value in points])

    def _log(self, run: str, values: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for first in range(0, len(values), 1000):  # the server's limit for a batch
            batch = [Metric(name, float(value), now, step) for name, value, step in values[first : first + 1000]]
            self._client.log_batch(run, metrics=batch)

    def artifacts(self, run: str, folder: Path, under: str) -> None:
        """A folder's files."""
        self._client.log_artifacts(run, str(folder), under)

    def close(self, run: str, status: Status) -> None:
        """The run's end."""
        self._client.set_terminated(run, status)
        if status == "FINISHED":
            self._finished.add(run)
