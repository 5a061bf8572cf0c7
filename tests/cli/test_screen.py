"""What is said of work that lasts: soon, and then now and then, whether parts of it end or not."""

from __future__ import annotations

import time

import pytest

from cli.screen import Terminal


def test_what_lasts_is_told_within_two_seconds_and_what_is_soon_done_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 100.0
    monkeypatch.setattr("cli.screen.time.monotonic", lambda: clock)
    screen = Terminal()
    clock = 100.0 + 60  # of imports, and whatever else comes first
    screen.doing("reading teacher at once")
    assert capsys.readouterr().err == ""
    screen, clock = Terminal(), 100.0
    for clock in (100.5, 101.5, 103.0, 111.0, 112.0):
        screen.doing(f"reading teacher at {clock}")
    assert capsys.readouterr().err.split("\n") == ["reading teacher at 101.5", "reading teacher at 112.0", ""]


def test_a_part_that_lasts_is_told_of_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cli.screen.SOON", 0.1)
    monkeypatch.setattr("cli.screen.LOG_SECONDS", 0.5)
    with Terminal().trials("trials", 2, lambda: "running: b training 3/9") as tick:
        time.sleep(0.3)
        tick("0.5 a")
        time.sleep(0.8)
        tick("0.6 b")
        time.sleep(0.3)
    soon, then, end = (line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines())
    assert soon == "running: b training 3/9"
    assert then == "0.5 a   running: b training 3/9"
    assert end == "0.6 b"


def test_a_line_that_is_sent_back_is_the_items_own(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Terminal().track(iter(int, 1), "training", 2)
    next(bar)
    bar.send("loss 2")
    bar.send("loss 1")
    bar.close()
    assert capsys.readouterr().err == "training: 2/2 after 0 s  loss 1\n"


def test_what_lasts_without_a_word_is_named_and_what_is_soon_done_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cli.screen.SOON", 0.2)
    screen = Terminal()
    with screen.lasting("finding a ..."):
        time.sleep(0.5)
    assert capsys.readouterr().err == "finding a ...\n"
    with Terminal().lasting("finding b ..."):
        pass
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
