"""A sweep whose MLflow server hangs and dies: nobody waits for it, and the same command again sends what it missed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow_server import Server
from test_sweep_end_to_end import PKT, pkt, until_a_trial_ended

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.xdist_group("sweep")]
SWEEP = {
    "name": "small",
    "recipe": {"finetune": {"examples": 64, "batch_size": 16, "epochs": 1}, "evaluate": {"examples": 16}},
    "axes": {"arm": ["lora"], "rank": [4]},
    "lr": [5.0e-3],
    "repeats": 6,
    "tuned_teacher": False,
    "gate": None,
}


def test_a_server_that_hangs_and_dies_costs_no_trial_and_no_record(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    server = Server(tmp_path)
    server.start()
    try:
        words = [
            "sweep",
            "sweep.yaml",
            "--trials-at-once",
            "1",
            "--tracking",
            server.uri.replace("//", "//ada:hunter2@"),
        ]
        running = subprocess.Popen([*PKT, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        until_a_trial_ended(running, tmp_path)
        server.send(signal.SIGSTOP)
        until_a_trial_ended(running, tmp_path, more=1)  # it goes on
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 130
        assert " records wait for MLflow (" in err
        assert "the same command again sends them" in err
        assert "Traceback" not in err
        assert list((tmp_path / "pkt-store/outbox").glob("*/*.json"))
        server.send(signal.SIGKILL)
        refused = pkt(tmp_path, *words)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "***@127.0.0.1" in refused.stderr and "Connection refused" in refused.stderr
        server.start()
        again = pkt(tmp_path, *words)
        assert again.returncode == 0
        assert "wait for MLflow" not in again.stderr
        assert not list((tmp_path / "pkt-store/outbox").glob("*/*.json"))
        client = MlflowClient(server.uri)
        runs = client.search_runs([client.get_experiment_by_name("pkt").experiment_id])
        names = [*(f"lora r4 lr 0.005 seed {seed}" for seed in range(6)), "small", "student", "teacher"]
        assert sorted(run.info.run_name for run in runs) == names
        assert {run.info.status for run in runs} == {"FINISHED"}
        trial = next(run for run in runs if run.info.run_name == names[0])
        assert len(client.get_metric_history(trial.info.run_id, "train_loss")) == 4
        for texts in (err, refused.stderr, again.stderr, again.stdout):
            assert "hunter2" not in texts
        for file in [tmp_path / "server.db", *(tmp_path / "pkt-store").rglob("*.json")]:
            assert b"hunter2" not in file.read_bytes()
    finally:
        server.stop()
