"""A small sweep that several files ask their questions of: they are one group, so that one process makes it once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FIRST = {
    "name": "first",  # as the documentation calls it
    "recipe": {
        "finetune": {"examples": 320, "batch_size": 16, "epochs": 2, "dropout": 0.0}, "evaluate": {"examples": 60},
    },
    "axes": {"arm": ["lora", "transfer"], "rank": [8, 4], "layers": ["0,2,3,5"]},
    "lr": [2.0e-2],
    "repeats": 2,
    "tuned_teacher": False,
    "gate": None,
}  # fmt: skip


@pytest.fixture(scope="session")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(FIRST))
    words = [str(Path(sys.executable).with_name("pkt")), "sweep", "sweep.yaml", "--trials-at-once", "1"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    return folder / "pkt-store"
