"""MLflow as the record that people look at: one parent run a sweep, one child run a trial.

    tracker = MlflowTracker("sqlite:///pkt-store/mlflow.db", Path("pkt-store/outbox"))
    tracker.put(Record(key="sweep-fingerprint", name="demo", status="RUNNING"))

A run's identity is its record's key: a record of one that exists goes on with it, so that a repeated or resumed sweep
never makes a second run for the same trial. Only the driver writes, from what trials left in the store; what can't be
sent now waits in the outbox.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import UserError
from orchestrator.tracking.mlflow_runs import EXPERIMENT, KIND, Runs
from orchestrator.tracking.outbox import Outbox, Waiting
from orchestrator.tracking.run_record import Record, masked, one_line

FIRST_CONTACT = 8  # seconds
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


class Tracker(Protocol):
    """What a sweep tells of itself."""

    def finished(self, key: str) -> bool:
        """Whether the run of this key is there and complete, or on its way."""

    def put(self, record: Record) -> None:
        """Keep it, and send it as soon as that can be."""

    def flush(self, seconds: float) -> Waiting:
        """Wait for what can be sent; what can't is told."""


class NullTracker:
    """For whoever wants no record but the store."""

    def finished(self, key: str) -> bool:
        """Nothing is left to tell."""
        return True

    def put(self, record: Record) -> None:
        """Nothing is kept."""

    def flush(self, seconds: float) -> Waiting:
        """Nothing waits."""
        return Waiting(0, "")


class MlflowTracker(Outbox):
    """An MLflow store behind an outbox. UserError where none can be; a slow or locked one is waited for."""

    def __init__(self, uri: str, outbox: Path, artifacts: Path | None = None) -> None:
        self._runs = Runs(uri, artifacts)
        check(uri, self._runs)
        place = masked(uri).replace("***@", "").rstrip("/")  # what waits for one server is not sent to another
        super().__init__(outbox / hashlib.sha256(place.encode()).hexdigest()[:12], self._runs)
        self._known = self.keys()

    def finished(self, key: str) -> bool:
        """Whether the run of this key is there and complete, or on its way."""
        return key in self._known or self._runs.finished(key)

    def put(self, record: Record) -> None:
        """Keep it, and send it as soon as that can be."""
        super().put(record)
        if record.status == "FINISHED":
            self._known.add(record.key)


def check(uri: str, runs: Runs) -> None:
    """UserError, within seconds, for an address that no MLflow store is behind or that refuses us. Makes the schema."""
    if "://" not in uri:
        raise UserError(f"tracking: {uri!r} can't be used: it is no address; give http://HOST:PORT or sqlite:///FILE")
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    try:
        if uri.startswith("sqlite:///"):  # MLflow would try for minutes to open what can't be opened
            file = Path(uri.removeprefix("sqlite:///"))
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file, timeout=FIRST_CONTACT)) as database:
                database.execute("PRAGMA schema_version")
        runs.open()
    except Exception as error:
        if "database is locked" in str(error):  # by whoever is at it: that passes
            return
        raise UserError(
            f"tracking: {masked(uri)} can't be used ({one_line(error)}); give an http:// or sqlite:/// address"
        ) from error


def _check_server(uri: str) -> None:
    """Questions asked once: MLflow's own client would ask for minutes and tell apart less."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    where = masked(uri)

    def ask(method: str, question: str, if_refused: str, **what: Any) -> Any:
        try:
            answer = http_request(
                get_default_host_creds(uri), f"/api/2.0/mlflow/experiments/{question}", method,
                max_retries=0, timeout=FIRST_CONTACT, raise_on_status=False, **what,
            )  # fmt: skip
        except Exception as error:
            raise UserError(
                f"tracking: {where} doesn't answer ({one_line(error)}); start the server, or correct the address"
            ) from error
        if answer.status_code in (401, 403):
            reason = f"{answer.status_code}: {one_line(answer.text)}"
            raise UserError(f"tracking: {where} refuses us ({reason}){if_refused}")
        return answer

    answer = ask("GET", "get-by-name", f"; set {CREDENTIALS}", params={"experiment_name": EXPERIMENT})
    try:
        told = answer.json()
        found = "experiment" in told and told["experiment"]["experiment_id"]
        known = found or told["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise UserError(
            f"tracking: {where} answers as no MLflow server does ({answer.status_code}); give the address of one"
        )
    refused = f": these credentials may not write to its experiment {EXPERIMENT!r}"
    for key, value in KIND.items() if found else ():  # the tag it has: who may read may not always write
        ask("POST", "set-experiment-tag", refused, json={"experiment_id": found, "key": key, "value": value})
