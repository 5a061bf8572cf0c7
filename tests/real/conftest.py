"""One real model for all tests here: they are one group, so that one process makes it, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
from smollm2 import smollm2


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2(tmp_path_factory.mktemp("real"))
