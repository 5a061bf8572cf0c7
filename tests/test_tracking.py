"""A real MLflow store, read back with MLflow's own client."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking import MlflowTracker


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_runs_nest_and_are_found_again(uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "file.txt").write_text("x")
    for _ in range(2):  # the second time as a resumed sweep would
        tracker = MlflowTracker(uri, artifacts=tmp_path / "artifacts")
        parent = tracker.open("sweep", "a sweep", {"repeats": 3}, None)
        child = tracker.open("sweep/trial", "a trial", {"arm": "lora", "rank": 8, "layers": None}, parent)
        tracker.metrics(child, {"score": 0.5})
        tracker.curve(child, "train_loss", [(step, 1 / step) for step in range(1, 1200)])
        tracker.artifacts(child, tmp_path / "adapter", "adapter")
        assert not tracker.finished("sweep/other")
        tracker.close(child, "FINISHED")
        assert tracker.finished("sweep/trial")
    tracker.close(parent, "FINISHED")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("pkt")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"a sweep", "a trial"}
    found = client.get_run(child)
    assert found.data.tags["mlflow.parentRunId"] == parent
    assert found.data.params == {"arm": "lora", "rank": "8", "layers": "None"}
    assert found.data.metrics["score"] == 0.5
    assert found.info.status == "FINISHED"
    history = {point.step: point.value for point in client.get_metric_history(child, "train_loss")}
    assert len(history) == 1199
    assert history[4] == 0.25
    assert [file.path for file in client.list_artifacts(child, "adapter")] == ["adapter/file.txt"]
    assert MlflowTracker(uri).finished("sweep/trial")
    assert capfd.readouterr() == ("", "")  # no line for each migration of the schema
