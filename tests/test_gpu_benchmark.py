"""`make gpu` where there is none: the same ways, on tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import gpu

KERNEL, SKIPPED = "sensitivity kernel", "skipped: it needs a CUDA device"
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def table(folder: Path) -> dict[str, str]:
    """What came of each section, from the one file that was written."""
    (file,) = folder.glob("*.md")
    lines = [line for line in file.read_text().splitlines() if line.startswith("| ")][1:]
    return {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in lines)}


@linux
@pytest.mark.slow
def test_a_section_that_fails_is_a_row_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [sys.executable, "-c", "print('half a table'); raise SystemExit('no such device | at all')"]
    endless = [sys.executable, "-c", "import time; time.sleep(600)"]
    some = {"broken": (broken, 60), "endless": (endless, 1), KERNEL: gpu.SECTIONS[KERNEL]}
    monkeypatch.setattr(gpu, "SECTIONS", some)
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    found = table(tmp_path)
    assert list(found) == list(some)
    assert found["broken"] == "failed: no such device / at all" and found["endless"] == "failed: not done after 1 s"
    assert found[KERNEL] == SKIPPED or gpu.hardware()
    assert (tmp_path / "no-GPU-dry-run.md").read_text() == capsys.readouterr().out.removesuffix("\n")


@linux
@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
def test_all_of_it_on_a_cpu(tmp_path: Path) -> None:
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    found = table(tmp_path)
    assert list(found) == list(gpu.SECTIONS)
    assert found["ranks"].startswith("gloo: 1 rank ") and "2 ranks, whole" in found["ranks"]
    assert "transfer 0." in found["pkt sweep"] and "lora 0." in found["pkt sweep"]
    assert found["memory of measure"].startswith("told 0.0")
    assert found["GPU tests"] == found[KERNEL] == SKIPPED or gpu.hardware()


def test_it_fits_into_25_minutes_and_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(limit for _, limit in gpu.SECTIONS.values()) <= 25 * 60
    assert gpu.MARKED
    monkeypatch.setattr(gpu, "hardware", lambda: "")
    assert gpu.main([]) == 2
