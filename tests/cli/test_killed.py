"""A sweep that is killed, whenever and however, ends in the same leaderboard once it is resumed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.xdist_group("killed")]
PKT = str(Path(sys.executable).with_name("pkt"))
SWEEP = {
    "name": "tiny",
    "recipe": {
        "finetune": {"examples": 36, "batch_size": 36, "epochs": 2}, "evaluate": {"examples": 10},
        "layers": "last", "rank": 4,
    },
    "axes": {"arm": ["lora", "transfer"]},
    "lr": [3.0e-2, 1.0e-2],
    "repeats": 2,
    "tuned_teacher": False,
    "tuning_seeds": 1,
    "gate": None,
}  # fmt: skip
TRIALS = 10  # two models as they are, two arms by two learning rates, two random seeds of each arm
# how it is killed, and after how many further scores; after 0 it has hardly started
KILLS = [("interrupt", 0), ("machine", 1), ("driver", 0), ("scheduler", 1), ("worker", 2)]
SIGNALS = {"interrupt": signal.SIGINT, "scheduler": signal.SIGTERM}  # those that `pkt` answers


def start(folder: Path, *words: str, at_once: int = 1) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [PKT, "sweep", *words, "--trials-at-once", str(at_once)], cwd=folder, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finished(folder: Path, *words: str) -> str:
    process = start(folder, *words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def scores(folder: Path) -> dict[str, Any]:
    """Every evaluation's figures, by its fingerprint."""
    paths = (folder / "pkt-store/evaluate").glob("[!.]*/metrics.json")  # what a killed process left aside is hidden
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def made(folder: Path) -> dict[Path, int]:
    """When each step's folder was made whole."""
    return {path: path.stat().st_mtime_ns for path in (folder / "pkt-store").glob("*/[!.]*/manifest.json")}


def runs(folder: Path) -> Counter[tuple[str, str]]:
    """What MLflow has: identities, and how they ended."""
    client = MlflowClient(f"sqlite:///{folder}/pkt-store/mlflow.db")
    experiment = client.get_experiment_by_name("pkt")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return Counter((run.data.tags["pkt.id"], run.info.status) for run in found)


@pytest.fixture(scope="module")
def whole(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    began = time.monotonic()
    out = finished(folder, "sweep.yaml")
    assert evaluated(folder) == TRIALS
    return folder, out, time.monotonic() - began


def everything(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The sweep and all that it started: Ray's own processes and the workers."""
    driver = psutil.Process(process.pid)
    return [*driver.children(recursive=True), driver]


def evaluated(folder: Path) -> int:
    """How many trials have their scores."""
    return len(list((folder / "pkt-store/evaluate").glob("*/manifest.json")))


def some_time(process: subprocess.Popen[str], folder: Path, more: int, seconds: float) -> None:
    """Until so many further trials have ended, and these seconds beyond."""
    wanted = min(evaluated(folder) + more, TRIALS)
    while evaluated(folder) < wanted and process.poll() is None:
        time.sleep(0.02)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def kill(process: subprocess.Popen[str], how: str, draw: random.Random) -> bool:
    """End a part of a running sweep without a warning; whether the sweep ends by that."""
    workers = [one for one in everything(process) if one.name().startswith("ray::Impl")]
    if how == "worker" and workers:
        draw.choice(workers).kill()
        return False
    if how in SIGNALS:
        process.send_signal(SIGNALS[how])
    elif how == "machine":
        for one in everything(process):
            with suppress(psutil.NoSuchProcess):  # a worker ends with its raylet
                one.kill()
    else:
        process.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how in SIGNALS else -signal.SIGKILL), err
    assert "Traceback" not in err
    if how in SIGNALS:
        assert err.strip().splitlines()[-1].startswith("pkt: stopped; what was finished is kept")
    return True


def test_it_ends_in_the_same_leaderboard(whole: tuple[Path, str, float], tmp_path: Path) -> None:
    reference, out, seconds = whole
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    draw, process = random.Random(0), None
    kept: dict[Path, int] = {}
    for how, more in KILLS:
        begun = (tmp_path / "pkt-store/sweeps/tiny/asked.json").is_file()
        process = start(tmp_path, *(["--resume", "tiny"] if begun else ["sweep.yaml"]), at_once=2)
        some_time(process, tmp_path, more, draw.uniform(0, 0.5 if more else 0.7 * seconds))
        assert process.poll() is None, process.communicate()  # each kill is of a sweep that runs
        if kill(process, how, draw):
            process = None
        kept |= made(tmp_path)
    if process:  # it goes on by itself
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert finished(tmp_path, "--resume", "tiny") == out
    assert scores(tmp_path) == scores(reference)
    assert runs(tmp_path) == runs(reference)
    assert set(runs(tmp_path).values()) == {1}
    assert {status for _, status in runs(tmp_path)} == {"FINISHED"}
    assert kept.items() <= made(tmp_path).items()  # nothing was made twice


def test_ctrl_c_says_how_to_go_on(whole: tuple[Path, str, float], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    tracking = f"sqlite:///{tmp_path}/runs.db"  # without it the same runs would go elsewhere, too
    process = start(tmp_path, "sweep.yaml", "--store", "here", "--tracking", tracking)
    while not (tmp_path / "here/sweeps/tiny/asked.json").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    again = f"pkt sweep --resume tiny --store here --tracking {tracking} --trials-at-once 1"
    told = err.splitlines()[-1]
    assert told.startswith("pkt: stopped; what was finished is kept")
    assert told.endswith(f"goes on from there, as does: {again}")
    assert time.monotonic() - began < 30


def test_a_full_disk_ends_in_a_line_and_loses_nothing(whole: tuple[Path, str, float], tmp_path: Path) -> None:
    disk, ballast = tmp_path / "disk", tmp_path / "disk" / "ballast"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be made here")
    try:
        (disk / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        for room in (2, 7):  # megabytes: less than the teacher's scores need, and enough for some of the trials
            ballast.write_bytes(b"0" * ((40 - room) << 20))
            process = start(disk, "sweep.yaml")
            _, err = process.communicate(timeout=300)
            assert process.returncode == 1
            assert re.search(r"^pkt: .*(No space left on device|disk is full).* make room", err, re.MULTILINE), err
            assert "Traceback" not in err
        assert evaluated(disk) < TRIALS
        ballast.unlink()
        assert finished(disk, "--resume", "tiny") == whole[1]
        assert scores(disk) == scores(whole[0])
        assert runs(disk) == runs(whole[0])
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_two_processes_at_one_sweep_share_it(whole: tuple[Path, str, float], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    both = [start(tmp_path, "sweep.yaml") for _ in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0] == told[1][0] == whole[1]
    assert "another process runs the sweep tiny" in told[0][1] + told[1][1]
    assert runs(tmp_path) == runs(whole[0])


def test_two_sweeps_at_one_store_share_what_they_can(whole: tuple[Path, str, float], tmp_path: Path) -> None:
    """Another rank, so other trainings, on the same teacher's pass and the same extraction."""
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    words = ["sweep.yaml"], ["sweep.yaml", "--name", "other", "--set", "rank=2"]
    both = [start(tmp_path, *one) for one in words]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0] == whole[1]
    assert len(list((tmp_path / "pkt-store/measure").glob("*/manifest.json"))) == 1
    assert len(list((tmp_path / "pkt-store/extract").glob("*/manifest.json"))) == 1
    assert set(runs(tmp_path).values()) == {1}
    assert len(runs(tmp_path)) == 2 * len(runs(whole[0]))


def test_a_resume_that_asks_for_something_else_is_told(whole: tuple[Path, str, float]) -> None:
    def refused(*words: str) -> str:
        process = start(whole[0], *words)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        return err

    assert "recipe.rank: 4, now 2" in refused("sweep.yaml", "--resume", "tiny", "--set", "rank=2")
    assert "no sweep 'tinny' was begun" in refused("--resume", "tinny")
    assert "name: 'tiny' is another sweep's" in refused("sweep.yaml", "--set", "rank=2")
