"""Which Python `make` installs with: the newest that works, whatever else bears the name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKE = shutil.which("make")
ROOT = Path(__file__).parents[1]
WORKS, SHIM, OLD = f'exec {sys.executable} "$@"', "echo no such version >&2; exit 127", "exit 1"
pytestmark = pytest.mark.skipif(MAKE is None, reason="make isn't there")


def make(place: Path, there: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`make` with these programs on its path, and no others."""
    for name, text in there.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)
    return subprocess.run(
        [str(MAKE), *words], cwd=ROOT, env={"PATH": str(place)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.13": WORKS, "python3.11": WORKS}, "python3.13"),
        ({"python3.13": SHIM, "python3.12": SHIM, "python3.11": WORKS, "python3": WORKS}, "python3.11"),
        ({"python3.13": OLD, "python3": WORKS}, "python3"),
    ],
)
def test_the_newest_python_that_works_is_taken(tmp_path: Path, there: dict[str, str], taken: str) -> None:
    told = make(tmp_path, there, "--dry-run", "--always-make", ".venv/.installed")
    assert f"\n{taken} -m venv .venv\n" in told.stdout


def test_without_one_it_is_said_what_is_missing(tmp_path: Path) -> None:
    told = make(tmp_path, {"python3.13": SHIM, "python3": OLD}, "VENV=none", "none/.installed")
    assert told.returncode == 2 and "name one: make PYTHON=<its path>" in told.stdout
    assert not (ROOT / "none").exists()
