"""What a process holds is told in bytes, whatever the system counts in."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from orchestrator.step import peak_memory
from orchestrator.teacher.teacher_pass import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@linux
def test_the_peak_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts in KiB, macOS in bytes."""
    assert peak_memory() == pytest.approx(status("VmHWM"), rel=0.05)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory() == pytest.approx(status("VmHWM") / 1024, rel=0.05)


@linux
def test_a_rank_tells_its_own_memory_or_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS doesn't say how much is shared."""
    assert memory() == pytest.approx(status("RssAnon"), rel=0.05)
    there = psutil.Process().memory_info()
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: namedtuple("pmem", "rss vms")(there.rss, there.vms))
    assert memory() == there.rss
