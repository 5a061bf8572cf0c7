"""Samples of the machine, in a file and under MLflow's names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.tracking.system_metrics import read, sampled


def test_a_file_has_a_sample_at_least_at_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "system" / "one.jsonl"
    with sampled(path, every=0.05):
        busy = time.monotonic() + 0.4
        while time.monotonic() < busy:
            sum(range(10_000))
    curves = read(path)
    count = len(path.read_text().splitlines())
    assert count >= 3
    assert [step for step, _ in curves["system/cpu_utilization_percentage"]] == list(range(count))
    assert 0 < curves["system/system_memory_usage_percentage"][0][1] <= 100


def test_no_samples_are_no_curves(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == {}


def test_work_that_fails_ends_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with pytest.raises(ValueError, match="the training"):
        with sampled(path, every=60):
            raise ValueError("the training")
    assert len(path.read_text().splitlines()) == 2
