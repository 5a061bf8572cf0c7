"""A sweep's name: whose it is, and until when it is nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.report.record import Refused, begun
from orchestrator.store import Store


def test_a_name_is_free_until_a_sweep_of_it_has_trained(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def refused(key: str) -> None:
        with pytest.raises(Refused, match=r"^gate: missed$"), begun(store, "mine", key, {"rank": 1}):
            raise Refused("gate: missed")

    refused("one")
    refused("another")
    with begun(store, "mine", "a third", {"rank": 2}):
        pass  # by force, and killed before its end
    refused("a third")  # without force, it keeps what was trained under its name
    with pytest.raises(UserError, match=r"name: 'mine' is another sweep's in .* \(rank: 2, now 1\)"):
        with begun(store, "mine", "one", {"rank": 1}):
            pass
