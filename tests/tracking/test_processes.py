"""Processes that are killed, or at one store together: nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow_runs import SWEEP, Nobody, points_of, runs_of, soon, tracker_at

from orchestrator.tracking.mlflow_runs import Runs
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.run_record import Record

KILLED = """
import os, sys
from pathlib import Path
from orchestrator.tracking.mlflow_runs import Runs
from orchestrator.tracking.outbox import Outbox

class Dies(Runs):
    def send(self, record):
        super().send(record)
        if record.key == "sweep/trial":
            os._exit(9)

Outbox(Path(sys.argv[1]), Dies(sys.argv[2])).flush(120)
"""


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
from orchestrator.tracking.run_record import Record
from orchestrator.tracking.tracker import MlflowTracker

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


def sizes(folder: Path) -> Iterator[int]:
    """Of the database and what SQLite keeps beside it; its journals come and go."""
    for path in folder.glob("*mlflow.db*"):
        with suppress(FileNotFoundError):
            if "lock" not in path.name:
                yield path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 200_000])
def test_a_process_killed_while_it_makes_the_schema_leaves_none(uri: str, tmp_path: Path, size: int) -> None:
    """MLflow's hundred migrations can't be gone on with from their middle."""
    (tmp_path / "go").touch()
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    making = subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), "0"], env=environment)
    soon(lambda: max((*sizes(tmp_path), 0)) >= size, 60)
    making.kill()
    making.wait()
    assert not (tmp_path / "mlflow.db").exists() or not (tmp_path / "mlflow.db").stat().st_size
    tracker = tracker_at(uri, tmp_path)
    tracker.put(Record("sweep", "a sweep"))
    assert not tracker.close(60).records
    assert set(runs_of(uri)) == {"sweep"}


def test_the_thread_holds_nobody_up(tmp_path: Path) -> None:
    """A process whose server hangs ends all the same."""
    with_nobody = Outbox(tmp_path / "box", Nobody())
    with_nobody.put(SWEEP)
    (thread,) = [thread for thread in threading.enumerate() if thread is with_nobody._thread]
    assert thread.daemon
    assert with_nobody.close().records == 1
    thread.join(5)
    assert not thread.is_alive()
