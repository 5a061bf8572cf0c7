"""A real MLflow server that is late, stops, refuses us or loses answers."""

from __future__ import annotations

import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.server import get_app_client
from mlflow_runs import SWEEP, points_of, runs_of, soon, tracker_at
from mlflow_server import Door, Server, free_port, plain_site

from orchestrator.errors import UserError
from orchestrator.tracking.mlflow_runs import Runs
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.run_record import Record


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


@pytest.mark.slow
def test_mlflows_own_users(tmp_path: Path, trial: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may read and not write is told before any work, and not by records that wait for ever."""
    server = Server(tmp_path, password="first-long-password")
    server.start()
    try:
        with pytest.raises(UserError, match=r"\(401: You are not authenticated.*set MLFLOW_TRACKING_USERNAME"):
            tracker_at(server.uri, tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "first-long-password")
        for _ in range(2):  # the first one makes the experiment
            tracker = tracker_at(server.uri, tmp_path)
            tracker.put(SWEEP)
            tracker.put(trial)
            assert tracker.close(30).records == 0
        assert set(runs_of(server.uri)) == {"sweep", "sweep/trial"}
        get_app_client("basic-auth", tracking_uri=server.uri).create_user("grace", "second-long-password")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "grace")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "second-long-password")
        assert set(runs_of(server.uri)) == {"sweep", "sweep/trial"}
        with pytest.raises(
            UserError, match=r"refuses us \(403: Permission denied\).* may not write to its experiment 'pkt'"
        ):
            tracker_at(server.uri, tmp_path)
    finally:
        server.stop()


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
