"""Every recipe that the repository holds is one that the product takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.recipe import Sweep
from orchestrator.sweep.cells import cells_of
from orchestrator.sweep.groups import fine_tunings
from orchestrator.sweep.presets import complete

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_expands_within_its_own_limit(path: Path) -> None:
    sweep = Sweep.model_validate(complete(yaml.safe_load(path.read_text())))
    cells = cells_of(sweep)
    assert sweep.baseline in {cell.label for cell in cells}
    assert fine_tunings(sweep, cells) <= sweep.max_trials


def test_there_are_some() -> None:
    assert len(FILES) >= 3
