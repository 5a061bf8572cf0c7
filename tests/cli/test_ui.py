"""`pkt ui` as a browser and Ctrl-C meet it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from test_sweep_end_to_end import PKT

from orchestrator.tracking.run_record import Record
from orchestrator.tracking.tracker import MlflowTracker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweep")]


def test_the_server_shows_the_runs_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "outbox", tmp_path / "mlflow-artifacts")
    tracker.put(Record("sweep", "a sweep"))
    tracker.put(Record("sweep/trial", "a trial", "sweep", {"arm": "lora"}))
    assert not tracker.close(60).records
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*PKT, "ui", "--store", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        question = Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            data=json.dumps({"experiment_ids": ["1"]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 90
        while True:
            assert server.poll() is None
            try:
                runs = json.load(urlopen(question, timeout=5))["runs"]
                break
            except URLError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert {run["info"]["run_name"] for run in runs} == {"a sweep", "a trial"}
        assert b"<title>MLflow" in urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
        taken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert taken.returncode == 2
        assert taken.stderr.startswith(f"pkt: port: {port} can't be had (Address already in use); name another")
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does it: to all of the group
        _, err = server.communicate(timeout=30)
    finally:
        if server.poll() is None:
            server.terminate()
    assert server.returncode == 0
    assert "Traceback" not in err
    assert err.startswith(f"http://127.0.0.1:{port}/#/experiments/1/runs shows the sweeps' runs; Ctrl-C ends it")
    with pytest.raises(URLError):
        urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(port) in (one.info["cmdline"] or [])]
