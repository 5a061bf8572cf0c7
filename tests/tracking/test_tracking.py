"""A real MLflow, read back with its own client: what is put is there, once, whatever failed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_runs import SWEEP, Nobody, points_of, runs_of, soon, tracker_at

from orchestrator.tracking.mlflow_runs import Runs
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.run_record import Record
from orchestrator.tracking.tracker import MlflowTracker


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


def test_what_is_added_to_a_run_that_has_ended_leaves_its_duration(uri: str, tmp_path: Path, trial: Record) -> None:
    tracker = tracker_at(uri, tmp_path)
    later = replace(trial, metrics={"before any step/score": 0.5}, time_ms=trial.time_ms + 60_000)
    for record in (SWEEP, trial, later):
        tracker.put(record)
    assert tracker.close(60).records == 0
    run = runs_of(uri)["sweep/trial"]
    assert run.info.end_time == trial.time_ms
    assert run.data.metrics["before any step/score"] == 0.5 and set(trial.metrics) < set(run.data.metrics)


def test_weights_have_one_place_on_disk_and_all_else_is_copied(tmp_path: Path, uri: str, trial: Record) -> None:
    """Beside the store; elsewhere, as without room for a second name, they are copied."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no other disk here")
    kept, elsewhere = tmp_path / "adapter", Path(tempfile.mkdtemp(dir="/dev/shm"))
    (kept / "inner" / "adapter_model.safetensors").write_bytes(b"weights")
    try:
        for place in (tmp_path / "artifacts", elsewhere):
            own = f"{uri}-{place.name}"
            tracker = MlflowTracker(own, place / "outbox", place)
            for record in (SWEEP, trial, trial):  # twice
                tracker.put(record)
            assert tracker.close(60).records == 0
            run = runs_of(own)["sweep/trial"]
            loaded = Path(MlflowClient(own).download_artifacts(run.info.run_id, "adapter"))
            lies = Path(run.info.artifact_uri.removeprefix("file://")) / "adapter"
            for name in ("file.txt", "inner/file.txt", "inner/adapter_model.safetensors"):
                assert (loaded / name).read_bytes() == (kept / name).read_bytes()
                shared = name.endswith("safetensors") and place != elsewhere
                assert (lies / name).samefile(kept / name) is shared
    finally:
        shutil.rmtree(elsewhere)


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
    monkeypatch.setattr("orchestrator.tracking.tracker.FIRST_CONTACT", 0.1)
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
