"""Records to MLflow runs, so that a record sent twice is there once.

    runs = Runs("http://mlflow:5000")
    runs.send(record)          # raises what MLflow raises; the same record again changes nothing

A run is found by its tag `pkt.id` before it is created. A metric's primary key is all of it, its time too, so that the
same point is there once; parameters are written once; files are written over.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.tracking.outbox import Refused
from orchestrator.tracking.run_record import Record, one_line

EXPERIMENT = "pkt"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # or its UI opens as one for chat applications
# What asking again alone doesn't change; 413: a proxy before the server takes no files as large as this one.
NEVER = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", 400, 413, 422)


@dataclass
class Known:
    """A run that is there."""

    id: str
    status: str
    params: set[str]  # MLflow refuses another value


class Runs:
    """MLflow's runs by their keys: what an outbox sends to."""

    def __init__(self, uri: str, artifacts: Path | None = None) -> None:
        self._uri, self._artifacts = uri, artifacts
        self._client: Any = None
        self._experiment = ""
        self._place: Path | None = None  # of the experiment's files, where they are beside the store
        self._families: dict[str, dict[str, Known]] = {}  # a sweep's runs, listed once
        self._silent: set[str] = set()  # sweeps whose runs could not be listed for `finished`
        self._unsure: set[str] = set()  # asked to be created, without an answer
        self._odd: set[str] = set()  # refused once
        self._stale = False  # the lists are older than what another process sent
        self._lock = threading.RLock()
        logging.getLogger("alembic").setLevel(logging.WARNING)  # the schema's migrations, line by line
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # each failed try, with its traceback
        # A creation whose answer is lost must not be tried again before a look whether it happened: the outbox's task.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the credentials that it may have

    def open(self) -> Any:
        """The client, once schema and experiment are there; of processes at a new file, one makes them."""
        with self._lock:
            if self._client and self._experiment:
                return self._client
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from mlflow.utils.file_utils import local_file_uri_to_path

            with _one_at_a_time(self._uri):
                client = MlflowClient(tracking_uri=self._uri)
                found = client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    location = self._artifacts.absolute().as_uri() if self._artifacts else None
                    try:
                        client.create_experiment(EXPERIMENT, location, KIND)
                    except MlflowException as error:
                        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine's process was first
                            raise
                    found = client.get_experiment_by_name(EXPERIMENT)
            if found.lifecycle_stage != "active":
                raise MlflowException(f"the experiment {EXPERIMENT!r} was deleted there; restore it with its client")
            self._client, self._experiment = client, found.experiment_id
            if self._artifacts and found.artifact_location.startswith("file:"):
                self._place = Path(local_file_uri_to_path(found.artifact_location))
            return client

    def forget(self) -> None:
        """Somebody else has sent: each run that is not known yet is looked for before it is created."""
        with self._lock:
            self._stale = bool(self._families)

    def finished(self, key: str) -> bool:
        """Whether the run is there and complete. Where nobody answers it isn't: sent twice is there once."""
        sweep = key.partition("/")[0]
        if sweep in self._silent or not self._lock.acquire(timeout=10):
            return False
        try:
            found = self._family(key).get(key)
        except Exception:
            self._silent.add(sweep)
            return False
        finally:
            self._lock.release()
        return found is not None and found.status == "FINISHED"

    def send(self, record: Record) -> None:
        """Once it returns, the run is as the record says. Refused for a record that MLflow will not take."""
        batch, inputs = _batch(record), _inputs(record)
        for folder, _ in record.artifacts:
            if not Path(folder).is_dir():
                raise Refused(f"{record.name}: its folder {folder} is gone")
        try:
            self._send(record, batch, inputs)
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)  # an upload's
            if getattr(error, "error_code", None) not in NEVER and status not in NEVER:
                raise
            if record.key in self._odd:
                raise Refused(f"{record.name}: {one_line(error)}") from error
            self._odd.add(record.key)  # its run may have been deleted, or the whole store: look again, once
            with self._lock:
                self._families.clear()
                self._experiment = ""
            raise
        self._odd.discard(record.key)

    def _send(self, record: Record, batch: dict[str, Any], inputs: list[Any]) -> None:
        client, doubted = self.open(), record.key in self._unsure
        run = self._run(record)
        batch["params"] = [param for param in batch["params"] if param.key not in run.params]
        client.log_batch(run.id, **batch)
        run.params |= {param.key for param in batch["params"]}
        if inputs:
            client.log_inputs(run.id, inputs)
        for file, table in record.tables.items():
            client.log_text(run.id, json.dumps(table), file)
        for folder, under in record.artifacts:
            if self._place:
                place = self._place / run.id / "artifacts" / under
                shutil.copytree(folder, place, copy_function=_linked, dirs_exist_ok=True)
            else:
                client.log_artifacts(run.id, folder, under)
        if record.status == "RUNNING":
            if run.status != "RUNNING":
                client.update_run(run.id, status="RUNNING")
        elif run.status != record.status:  # what is added to an ended run leaves its time
            client.set_terminated(run.id, record.status, record.time_ms)
        run.status = record.status
        if doubted:  # a request that was given up may still have been served, after we looked
            for _, other in self._search(f"= '{record.key}'"):
                if other.id != run.id:
                    client.delete_run(other.id)
            self._unsure.discard(record.key)

    def _run(self, record: Record) -> Known:
        family, doubted = self._family(record.key), record.key in self._unsure
        if (doubted or self._stale) and record.key not in family:
            family |= self._search(f"= '{record.key}'")
        if record.key in family:
            return family[record.key]
        tags = {"pkt.id": record.key, **record.tags}
        if record.parent:
            tags["pkt.parent"] = record.parent
            if above := self._family(record.parent).get(record.parent):
                tags["mlflow.parentRunId"] = above.id
        self._unsure.add(record.key)
        began = record.time_ms - int(1000 * record.seconds)
        run = self.open().create_run(self._experiment, began, tags, record.name)
        if not doubted:
            self._unsure.discard(record.key)
        family[record.key] = Known(run.info.run_id, "RUNNING", set())
        return family[record.key]

    def _family(self, key: str) -> dict[str, Known]:
        """The runs of a key's sweep: listed once, so that a trial costs the same whatever their number."""
        with self._lock:
            if (sweep := key.partition("/")[0]) not in self._families:
                self._families[sweep] = dict(self._search(f"LIKE '{sweep}%'"))
            return self._families[sweep]

    def _search(self, condition: str) -> Iterator[tuple[str, Known]]:
        client, token = self.open(), None
        while True:
            wanted = f"tags.`pkt.id` {condition}"
            page = client.search_runs([self._experiment], wanted, max_results=1000, page_token=token)
            for run in page:
                yield run.data.tags["pkt.id"], Known(run.info.run_id, run.info.status, set(run.data.params))
            if not (token := page.token):
                return


def _batch(record: Record) -> dict[str, Any]:
    """What goes in one request: the client cuts it where MLflow's limits are."""
    from mlflow.entities import Metric, Param, RunTag

    curves = {name: [(0, value)] for name, value in record.metrics.items()} | dict(record.curves)
    tags = dict(record.tags)
    if record.tables:  # what makes the UI show them as tables; `log_table` would add to what is there
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": file, "type": "table"} for file in record.tables])
    try:
        values = [(name, *point) for name, curve in curves.items() for point in curve if point[1] is not None]
        points = [Metric(name, float(value), record.time_ms, int(step)) for name, step, value in values]
    except (TypeError, ValueError) as error:
        raise Refused(f"{record.name}: a figure is no number ({error})") from error
    return {
        "metrics": points,
        "params": [Param(name, str(value)[:6000]) for name, value in record.params.items()],
        "tags": [RunTag(name, str(value)[:8000]) for name, value in tags.items()],
    }


def _inputs(record: Record) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def source(one: Mapping[str, str]) -> Dataset:
        return Dataset(one["name"], one["digest"][:36], "local", json.dumps({"uri": one["source"]}))

    return [DatasetInput(source(one), [InputTag("mlflow.data.context", one["context"])]) for one in record.datasets]


def _linked(source: str, target: str) -> None:
    """A copy; of weights, which are large and never change, another name for the same bytes where the disk has such."""
    Path(target).unlink(missing_ok=True)  # of a record that is sent again
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """MLflow makes a new file's schema without a lock, and two at it would both fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    file = Path(uri.removeprefix("sqlite:///"))
    with Path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists() or not file.stat().st_size:
            _make(file)
        yield


def _make(file: Path) -> None:
    """The schema, made aside: a process killed in the middle of it would leave one that MLflow can't go on from."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    aside = file.with_name(f".{file.name}.new")
    aside.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{aside}", "./mlruns").engine.dispose()
    aside.rename(file)
