"""A real MLflow, by file and by server, read back with its own client: what is put is there, once, whatever failed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_server import Door, Server, free_port, plain_site

from orchestrator.errors import UserError
from orchestrator.mlflow_runs import Runs
from orchestrator.outbox import Outbox
from orchestrator.run_record import Record
from orchestrator.tracking import MlflowTracker

SWEEP = Record("sweep", "a sweep", params={"repeats": 3}, status="RUNNING", time_ms=1_700_000_000_000)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def trial(tmp_path: Path) -> Record:
    (tmp_path / "adapter" / "inner").mkdir(parents=True)
    (tmp_path / "adapter" / "file.txt").write_text("x")
    (tmp_path / "adapter" / "inner" / "file.txt").write_text("y")
    return Record(
        "sweep/trial", "a trial", "sweep", {"arm": "lora", "rank": 8, "layers": None}, {"who": "student"},
        metrics={"score": 0.5, "gold_loss": 1 / 3},
        curves={"train_loss": [(step, 1 / step) for step in range(1, 1200)]},
        artifacts=[(str(tmp_path / "adapter"), "adapter")],
        tables={"scores.json": {"columns": ["id", "score"], "data": [["a", 0.5], ["b", 1.0]]}},
        datasets=[{"name": "gsm8k", "digest": "d1", "source": "/rows/gsm8k", "context": "test"}],
        time_ms=1_700_000_001_000,
    )  # fmt: skip


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


def test_every_field_arrives(
    uri: str, tmp_path: Path, trial: Record, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = tracker_at(uri, tmp_path)
    tracker.put(SWEEP)
    tracker.put(trial)
    tracker.put(replace(SWEEP, status="FAILED", time_ms=1_700_000_002_000))
    assert tracker.close(60) == (0, "")
    assert capfd.readouterr() == ("", "")  # no line for each migration of the schema
    runs, client = runs_of(uri), MlflowClient(uri)
    parent, child = runs["sweep"], runs["sweep/trial"]
    assert (parent.info.run_name, parent.info.status, parent.info.end_time) == ("a sweep", "FAILED", 1_700_000_002_000)
    assert (child.info.run_name, child.info.status) == ("a trial", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["who"] == "student"
    assert child.data.params == {"arm": "lora", "rank": "8", "layers": "None"}
    assert (child.data.metrics["score"], child.data.metrics["gold_loss"]) == (0.5, 1 / 3)
    history = {point.step: point.value for point in client.get_metric_history(child.info.run_id, "train_loss")}
    assert history == {step: 1 / step for step in range(1, 1200)}
    (dataset,) = child.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("gsm8k", "d1")
    assert json.loads(dataset.dataset.source) == {"uri": "/rows/gsm8k"}
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "test")]
    files = [file.path for file in client.list_artifacts(child.info.run_id, "adapter")]
    assert files == ["adapter/file.txt", "adapter/inner"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    table = client.load_table(child.info.experiment_id, "scores.json", [child.info.run_id])  # found by the UI's tag
    assert table.to_dict("list") == {"id": ["a", "b"], "score": [0.5, 1.0]}


def test_a_record_twice_is_one_run_without_a_point_more(uri: str, tmp_path: Path, trial: Record) -> None:
    for _ in range(2):  # the second time as a process that knows nothing would
        tracker = tracker_at(uri, tmp_path)
        for record in (SWEEP, trial, trial):
            tracker.put(record)
        assert tracker.close(60).records == 0
    assert set(runs_of(uri)) == {"sweep", "sweep/trial"}
    assert points_of(uri, "sweep/trial") == {"score": 1, "gold_loss": 1, "train_loss": 1199}
    assert len(runs_of(uri)["sweep/trial"].inputs.dataset_inputs) == 1


def test_finished_is_what_is_there_or_on_its_way(uri: str, tmp_path: Path, trial: Record) -> None:
    first = tracker_at(uri, tmp_path)
    assert not first.finished("sweep/trial")
    first.put(SWEEP)
    first.put(trial)
    assert first.finished("sweep/trial")
    assert first.close(60).records == 0
    again = tracker_at(uri, tmp_path)
    assert again.finished("sweep/trial")
    assert not again.finished("sweep")  # it runs
    assert not again.finished("sweep/other")
    again.put(replace(SWEEP, params={"repeats": 4, "more": 1}, status="FINISHED"))
    assert again.close(60).records == 0
    parent = runs_of(uri)["sweep"]
    assert (parent.info.status, parent.data.params) == (
        "FINISHED",
        {"repeats": "3", "more": "1"},
    )  # what is written stays


def test_what_another_process_sent_is_found(uri: str, tmp_path: Path, trial: Record) -> None:
    first, second = tracker_at(uri, tmp_path), tracker_at(uri, tmp_path)
    assert not first.finished("sweep/trial")  # and so it was, when it was listed
    second.put(SWEEP)
    second.put(trial)
    assert second.close(60).records == 0
    first.put(trial)
    assert first.close(60).records == 0
    assert set(runs_of(uri)) == {"sweep", "sweep/trial"}


KILLED = """
import os, sys
from pathlib import Path
from orchestrator.mlflow_runs import Runs
from orchestrator.outbox import Outbox

class Dies(Runs):
    def send(self, record):
        super().send(record)
        if record.key == "sweep/trial":
            os._exit(9)

Outbox(Path(sys.argv[1]), Dies(sys.argv[2])).flush(120)
"""


class Nobody:
    """A side that is down."""

    def send(self, record: Record) -> None:
        raise ConnectionError("down")

    def forget(self) -> None:
        pass


def test_killed_after_sending_nothing_is_doubled(uri: str, tmp_path: Path, trial: Record) -> None:
    box = Outbox(tmp_path / "box", Nobody())
    box.put(SWEEP)
    box.put(trial)
    assert box.close().records == 2
    words = [sys.executable, "-c", KILLED, str(tmp_path / "box"), uri]
    died = subprocess.run(words, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}, check=False, timeout=120)
    assert died.returncode == 9
    assert set(runs_of(uri)) == {"sweep", "sweep/trial"}
    again = Outbox(tmp_path / "box", Runs(uri))
    assert again.waiting().records == 1
    assert again.close(60).records == 0
    assert set(runs_of(uri)) == {"sweep", "sweep/trial"}
    assert points_of(uri, "sweep/trial") == {"score": 1, "gold_loss": 1, "train_loss": 1199}


RACE = """
import sys, time
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from orchestrator.run_record import Record
from orchestrator.tracking import MlflowTracker

folder, number = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{number}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", folder / "outbox", folder / "artifacts")
for trial in range(10):
    tracker.put(Record("sweep", "a sweep", status="RUNNING", time_ms=1))
    tracker.put(Record(f"sweep/{trial}", "of all", "sweep", metrics={"score": 1.0}, time_ms=1))
    tracker.put(Record(f"sweep/{number}-{trial}", "own", "sweep"))
left = tracker.close(60)
assert not left.records, left
"""


@pytest.mark.slow
def test_processes_at_a_fresh_file_and_one_outbox(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RACE, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    started = [
        subprocess.Popen([*words, str(number)], stderr=subprocess.PIPE, env=environment, text=True)
        for number in range(3)
    ]
    soon(lambda: len(list(tmp_path.glob("ready-*"))) == 3)
    (tmp_path / "go").touch()
    for process in started:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    shared = [f"sweep/{trial}" for trial in range(10)]
    own = [f"sweep/{number}-{trial}" for number in range(3) for trial in range(10)]
    assert set(runs_of(f"sqlite:///{tmp_path}/mlflow.db")) == {"sweep", *shared, *own}
    assert points_of(f"sqlite:///{tmp_path}/mlflow.db", "sweep/3") == {"score": 1}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 200_000])
def test_a_process_killed_while_it_makes_the_schema_leaves_none(uri: str, tmp_path: Path, size: int) -> None:
    """MLflow's hundred migrations can't be gone on with from their middle."""
    (tmp_path / "go").touch()
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    making = subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), "0"], env=environment)
    soon(lambda: any(one.stat().st_size >= size for one in tmp_path.glob("*mlflow.db*") if "lock" not in one.name), 60)
    making.kill()
    making.wait()
    assert not (tmp_path / "mlflow.db").exists() or not (tmp_path / "mlflow.db").stat().st_size
    tracker = tracker_at(uri, tmp_path)
    tracker.put(Record("sweep", "a sweep"))
    assert not tracker.close(60).records
    assert set(runs_of(uri)) == {"sweep"}


def order(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "server.db") as database:
        return [name for (name,) in database.execute("select name from runs order by rowid")]


@pytest.mark.slow
def test_a_server_that_is_started_late_gets_everything_in_order(server: Server, tmp_path: Path, trial: Record) -> None:
    box = Outbox(tmp_path / "box", Runs(server.uri))
    box.put(SWEEP)
    for number in range(10):
        box.put(replace(trial, key=f"sweep/{number}", name=f"trial {number}"))
    soon(lambda: box.waiting().reason == "Connection refused")
    assert box.waiting().records == 11
    server.start()
    assert box.close(60).records == 0
    assert order(tmp_path) == ["a sweep", *(f"trial {number}" for number in range(10))]
    run = runs_of(server.uri)["sweep/9"]
    assert len(MlflowClient(server.uri).list_artifacts(run.info.run_id, "adapter")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_server_that_stops_in_the_middle(server: Server, tmp_path: Path, trial: Record, how: signal.Signals) -> None:
    server.start()
    tracker = tracker_at(server.uri, tmp_path)
    tracker.put(SWEEP)
    assert tracker.flush(30).records == 0
    server.send(how)
    for number in range(5):
        tracker.put(replace(trial, key=f"sweep/{number}", name=f"trial {number}"))  # returns, though nobody answers
    left = tracker.flush(1)
    assert left.records == 5
    soon(lambda: tracker.waiting().reason == ("timed out" if how == signal.SIGSTOP else "Connection refused"))
    if how == signal.SIGSTOP:
        server.send(signal.SIGCONT)
    else:
        server.start()
    assert tracker.close(90).records == 0
    assert order(tmp_path)[:1] == ["a sweep"]
    runs = runs_of(server.uri)
    assert set(runs) == {"sweep", *(f"sweep/{number}" for number in range(5))}
    assert {run.info.status for key, run in runs.items() if key != "sweep"} == {"FINISHED"}
    assert points_of(server.uri, "sweep/0") == {"score": 1, "gold_loss": 1, "train_loss": 1199}


@pytest.mark.slow
def test_credentials_lost_answers_and_the_number_of_questions(
    server: Server, tmp_path: Path, trial: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    door = Door(server, "ada", "hunter2-secret")
    with pytest.raises(UserError, match=r"refuses us \(401: .*set MLFLOW_TRACKING_USERNAME"):
        tracker_at(door.uri, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-password")
    with pytest.raises(UserError, match="refuses us") as refused:
        tracker_at(door.uri, tmp_path)
    assert "as Basic ***" in str(refused.value)
    assert "wrong-password" not in str(refused.value)
    with pytest.raises(UserError, match="refuses us") as refused:
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        tracker_at(door.uri.replace("//", "//ada:other-password@"), tmp_path)
    assert "other-password" not in str(refused.value)
    assert not (tmp_path / "outbox").exists()  # refused before anything is left
    assert not door.asked

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-secret")
    tracker = tracker_at(door.uri, tmp_path)
    tracker.put(SWEEP)
    assert tracker.flush(30).records == 0
    door.lost = ["runs/create"]  # served, and nobody heard of it
    tracker.put(trial)
    assert tracker.flush(30).records == 0
    assert door.lost == []
    door.late = ["runs/create"]  # given up, asked for again, and then both are served
    tracker.put(replace(trial, key="sweep/late"))
    assert tracker.flush(30).records == 0
    assert door.late == []
    door.lost = ["runs/log-batch", "runs/update"]
    tracker.put(replace(trial, key="sweep/second"))
    assert tracker.flush(30).records == 0
    door.large = ["inner/file.txt"]
    tracker.put(replace(trial, key="sweep/large"))
    tracker.put(replace(trial, key="sweep/small", artifacts=[]))
    left = tracker.flush(30)
    assert (left.records, "413" in left.reason) == (1, True)
    door.large = []
    counts = []
    for number in range(12):
        door.asked.clear()
        tracker.put(replace(trial, key=f"sweep/{number}"))
        assert tracker.flush(30).records == 1  # the large one: the next process tries again
        counts.append(sorted(question.rpartition("/")[2] for question in door.asked))
    questions = [
        "create",
        "file.txt",
        "file.txt",
        "get",
        "log-batch",
        "log-batch",
        "log-inputs",
        "scores.json",
        "update",
    ]
    assert counts == [questions] * 12  # the same however many runs there are; two batches for 1201 points
    tracker.close()

    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2-secret")
    token = tracker_at(door.uri, tmp_path)
    assert token.finished("sweep/11")
    assert token.close(30).records == 0
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    url = tracker_at(door.uri.replace("//", "//ada:hunter2-secret@"), tmp_path)
    url.put(replace(trial, key="sweep/by-url"))
    assert url.close(30).records == 0
    door.close()
    runs = runs_of(server.uri)
    named = [
        "sweep",
        *(f"sweep/{name}" for name in ("trial", "late", "second", "by-url", "large", "small", *range(12))),
    ]
    assert set(runs) == set(named)
    assert {run.info.status for key, run in runs.items() if key != "sweep"} == {"FINISHED"}
    assert points_of(server.uri, "sweep/second") == {"score": 1, "gold_loss": 1, "train_loss": 1199}


def test_an_address_without_mlflow_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tracking: http://\*\*\*@127.0.0.1:\d+ doesn't answer \(Connection refused\); start"
    ) as told:
        tracker_at(f"http://ada:pass@word@127.0.0.1:{free_port()}", tmp_path)
    assert "pass" not in str(told.value)
    with plain_site() as site, pytest.raises(UserError, match=r"answers as no MLflow server does \(200\)"):
        tracker_at(site, tmp_path)
    (tmp_path / "text.db").write_text("no database at all, but text that goes on for a while" * 30)
    with pytest.raises(UserError, match=r"can't be used \(file is not a database\)"):
        tracker_at(f"sqlite:///{tmp_path}/text.db", tmp_path)
    with pytest.raises(UserError, match=r"can't be used"):
        tracker_at(f"sqlite:///{tmp_path}/text.db/mlflow.db", tmp_path)
    with pytest.raises(UserError, match=r"can't be used"):
        tracker_at(str(tmp_path / "mlruns"), tmp_path)
    assert not (tmp_path / "outbox").exists()


def test_secrets_are_nowhere(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t-one")
    params = {
        "hub_token": "s3cr3t-two", "wandb.api_key": "s3cr3t-three", "DB_PASSWORD": "s3cr3t-four", "a.secret": "s3cr3t",
        "address": "see https://ada:s3cr3t-five@host:5000/x?y", "note": "it is s3cr3t-one", "finetune.max_tokens": 2048,
    }  # fmt: skip
    kept = Outbox(tmp_path / "kept", Nobody())
    tracker = tracker_at(uri, tmp_path)
    for box in (kept, tracker):
        box.put(Record("sweep", "a sweep", params=params, tags={"from": "ftp://u:s3cr3t@h", "token": "s3cr3t"}))
    kept.close()
    assert tracker.close(60).records == 0
    run = runs_of(uri)["sweep"]
    address = "see https://***@host:5000/x?y"
    assert run.data.params == {"address": address, "note": "it is ***", "finetune.max_tokens": "2048"}
    for file in [tmp_path / "mlflow.db", *(tmp_path / "kept").iterdir()]:
        assert b"s3cr3t" not in file.read_bytes()


def test_what_can_not_be_written_waits_until_it_is_mended(uri: str, tmp_path: Path, trial: Record) -> None:
    """A file where a folder has to be stands for a full disk: it stops whoever may do everything, too."""
    tracker = tracker_at(uri, tmp_path)
    (tmp_path / "artifacts").write_text("in the way")
    tracker.put(SWEEP)
    tracker.put(trial)
    soon(lambda: "artifacts" in tracker.waiting().reason)
    assert tracker.waiting().records == 1
    (tmp_path / "artifacts").unlink()
    assert tracker.flush(60) == (0, "")
    (tmp_path / "box").write_text("in the way")
    box = Outbox(tmp_path / "box", Runs(uri))
    box.put(replace(trial, key="sweep/held"))  # in memory
    assert box.flush(0.3) == (1, f"File exists: {tmp_path}/box")
    (tmp_path / "box").unlink()
    assert box.close(60).records == 0
    assert set(runs_of(uri)) == {"sweep", "sweep/trial", "sweep/held"}


def test_a_locked_file_is_waited_for(uri: str, tmp_path: Path, trial: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker_at(uri, tmp_path).close()
    monkeypatch.setattr("orchestrator.tracking.FIRST_CONTACT", 0.1)
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
    other.execute("begin exclusive")
    tracker = tracker_at(uri, tmp_path)  # no exception
    tracker.put(SWEEP)
    tracker.put(trial)
    assert tracker.flush(0.5).records == 2
    other.execute("commit")
    other.close()
    assert tracker.close(60).records == 0
    assert set(runs_of(uri)) == {"sweep", "sweep/trial"}


def test_a_record_that_is_refused_waits_and_lets_the_others_by(
    uri: str, tmp_path: Path, trial: Record, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = tracker_at(uri, tmp_path)
    tracker.put(SWEEP)
    tracker.put(replace(trial, key="sweep/bad", metrics={"no*name": 1.0}))
    tracker.put(replace(trial, key="sweep/gone", artifacts=[(str(tmp_path / "gone"), "adapter")]))
    tracker.put(trial)
    left = tracker.close(60)
    assert left.records == 2
    assert "no*name" in left.reason
    assert runs_of(uri)["sweep/trial"].info.status == "FINISHED"
    (tmp_path / "gone").mkdir()
    assert tracker_at(uri, tmp_path).close(60).records == 1  # the next process tries again
    assert runs_of(uri)["sweep/gone"].info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


def test_a_run_that_somebody_deleted_is_made_anew(uri: str, tmp_path: Path) -> None:
    tracker = tracker_at(uri, tmp_path)
    tracker.put(SWEEP)
    assert tracker.flush(60).records == 0
    MlflowClient(uri).delete_run(runs_of(uri)["sweep"].info.run_id)
    tracker.put(replace(SWEEP, status="FINISHED"))
    assert tracker.close(60) == (0, "")
    assert runs_of(uri)["sweep"].info.status == "FINISHED"


def test_the_thread_holds_nobody_up(tmp_path: Path) -> None:
    """A process whose server hangs ends all the same."""
    with_nobody = Outbox(tmp_path / "box", Nobody())
    with_nobody.put(SWEEP)
    (thread,) = [thread for thread in threading.enumerate() if thread is with_nobody._thread]
    assert thread.daemon
    assert with_nobody.close().records == 1
    thread.join(5)
    assert not thread.is_alive()
