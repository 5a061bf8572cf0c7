"""A gate is asked before the trainings: where it is surely missed, none begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_sweep_end_to_end import pkt

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
SWEEP = {
    "name": "gated",
    "recipe": {
        "finetune": {"examples": 36, "batch_size": 36, "epochs": 1}, "evaluate": {"examples": 20},
        "layers": "last", "rank": 4,
    },
    "axes": {"arm": ["lora", "transfer"]},
    "lr": [1.0e-2],
    "repeats": 1,
    "tuned_teacher": False,
    "gate": 0.5,
}  # fmt: skip


@pytest.mark.long
def test_a_missed_gate_ends_the_sweep_before_it_trains(demo_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    refused = pkt(tmp_path, "sweep", "sweep.yaml", "--trials-at-once", "1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == (
        "pkt: gate: the teacher scores 0.00 on the task (95 %: 0.000 to 0.168), below the gate of 0.50, and there will"
        " be no verdict; take another teacher or a lower gate, have it fine-tuned on the task (--set"
        " tuned_teacher=true), or --force goes on"
    )
    assert len(list((tmp_path / "pkt-store/evaluate").glob("*/manifest.json"))) == 2
    assert not (tmp_path / "pkt-store/finetune").exists() and not (tmp_path / "pkt-store/mlflow.db").exists()
    other = pkt(tmp_path, "sweep", "sweep.yaml", "--set", "rank=2")  # the name is free as long as nothing was trained
    assert other.stderr.splitlines()[-1] == refused.stderr.splitlines()[-1]
    forced = pkt(tmp_path, "sweep", "--resume", "gated", "--force", "--trials-at-once", "1")
    kept = pkt(tmp_path, "sweep", "sweep.yaml", "--force")
    assert (kept.returncode, kept.stdout) == (2, "") and "recipe.rank: 2, now 4" in kept.stderr
    assert forced.returncode == 0, forced.stderr
    assert "warning: the teacher scores 0.00 on the task (95 %: 0.000 to 0.168), below the gate" in forced.stderr
    assert "No verdict: the teacher scores 0.00 on the task, below the gate of 0.50." in forced.stdout
    assert "Gate: teacher scores 0.000 (95 %: 0.000 to 0.168); at least 0.5 is needed for a claim: not passed." in (
        forced.stdout
    )
    record = json.loads((tmp_path / "pkt-store/sweeps/gated/sweep.json").read_text())
    assert record["gate"].pop("p") < 0.05
    assert record["gate"] == {
        "set": True, "least": 0.5, "score": 0.0, "of": "teacher", "answer": "doesn't",
        "ci95": [0.0, pytest.approx(0.168, abs=1e-3)],
    }  # fmt: skip


@pytest.mark.long
def test_a_tuned_teacher_is_waited_for_and_told_once_it_is_known(demo_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SWEEP, "tuned_teacher": True, "name": "tuned"}))
    done = pkt(tmp_path, "sweep", "sweep.yaml", "--trials-at-once", "1")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("warning", "trials: "))]
    (told,) = [line for line in lines if line.startswith("warning")]
    assert "below the gate of 0.50, and there will be no verdict" in told
    assert lines[-1].startswith("trials: 3/3") and lines[-1] != told  # its training is the first of the three
    record = json.loads((tmp_path / "pkt-store/sweeps/tuned/sweep.json").read_text())
    assert record["gate"]["answer"] == "doesn't"
