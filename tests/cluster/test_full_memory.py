"""A machine whose memory is used up: Ray ends workers before the system ends whatever it likes."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest

from orchestrator.cluster.session import session
from orchestrator.cluster.trials import run_trials
from orchestrator.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("trials")]


GIB = 2**30


def test_it_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """To Ray two GiB more than are used now are too many here."""
    there = psutil.virtual_memory()
    if there.available < 6 * GIB:
        pytest.skip("not enough memory to spare")
    monkeypatch.setenv("RAY_memory_usage_threshold", str((there.total - there.available + 2 * GIB) / there.total))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "250")

    def work(index: int) -> dict[str, Any]:
        held = [b"1" * GIB for _ in range(4)]
        time.sleep(120)
        return {"score": len(held)}

    full = r"^trials: a machine has no memory left \([\d.]+GB used / [\d.]+GB limit\), .*fewer --trials-at-once"
    with session(cpus=1, gpus=0), pytest.raises(UserError, match=full):
        run_trials(work, [[[0]]], lambda *_: [], cpus=1, gpus=0, at_once=1)
