"""Whole commands as a user waits for them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import medians, table

PKT = str(Path(sys.executable).with_name("pkt"))


def main() -> None:
    def call(*words: str) -> None:
        subprocess.run([PKT, *words], check=True, capture_output=True, cwd=place)

    with tempfile.TemporaryDirectory() as place:
        (help_,) = medians([lambda: call("--help")], 5)
        began = time.perf_counter()
        call("sweep", "--trials-at-once", "2")
        first = time.perf_counter() - began
        (again,) = medians([lambda: call("sweep")], 3)
    rows = [
        ("pkt --help", help_, "≤ 0.5"),
        ("pkt sweep: the demo", first, "≤ 300"),
        ("the same again", again, "≤ 20"),
    ]
    table("Commands, wall time, two trials at once", ("command", "s", "target"), rows)
