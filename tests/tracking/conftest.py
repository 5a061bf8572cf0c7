"""A fresh MLflow store, by file or by server, and a trial to put there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import Server

from orchestrator.tracking.run_record import Record


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
