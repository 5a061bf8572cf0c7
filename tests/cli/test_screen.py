"""What is said of work that has no count: soon, and then now and then."""

from __future__ import annotations

import pytest

from cli.screen import Terminal


def test_what_lasts_is_told_within_two_seconds_and_what_is_soon_done_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 100.0
    monkeypatch.setattr("cli.screen.time.monotonic", lambda: clock)
    screen = Terminal()
    for clock in (100.5, 101.5, 103.0, 111.0, 112.0):
        screen.doing(f"reading teacher at {clock}")
    assert capsys.readouterr().err.split("\n") == ["reading teacher at 101.5", "reading teacher at 112.0", ""]
