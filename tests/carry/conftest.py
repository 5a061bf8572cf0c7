"""A tiny teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import saved


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    saved(tmp_path / "teacher", "llama", vocab_size=104)
    return tmp_path / "teacher"
