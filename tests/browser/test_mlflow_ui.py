"""A sweep's runs in MLflow as a person meets them: a real sweep, the real server, a real browser without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from demo import screenshots as ui

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.xdist_group("first")]
OURS_NOT = "users/current"  # MLflow asks who is logged in, and this server knows no users


@pytest.fixture(scope="module")
def served(swept: Path) -> Iterator[str]:
    pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    if not ui.chromium():
        pytest.skip("no Chromium on the path")
    with ui.served(swept) as address:
        yield address


@pytest.fixture
def seen(served: str) -> Iterator[tuple[Any, str]]:
    """A fresh browser, since MLflow remembers in it what was unfolded; at the end, nothing may have gone wrong."""
    wrong: list[str] = []
    local = (served, "data:", "blob:")
    with ui.browsing(str(ui.chromium())) as page:
        page.on("request", lambda one: one.url.startswith(local) or wrong.append(f"asked for {one.url}"))
        page.on(
            "response", lambda one: one.status < 400 or OURS_NOT in one.url or wrong.append(f"{one.status} {one.url}")
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page, served
    assert wrong == []


def test_the_sweep_unfolds_into_its_trials(seen: tuple[Any, str]) -> None:
    page, address = seen
    page.goto(f"{address}#/experiments/1/runs")
    ui.parent(page, "first").wait_for()
    assert ui.children(page).count() == 0
    ui.open_runs(page, address, "first")
    assert ui.children(page).count() >= 2 + 4 * 2
    for field in ("arm", "rank", "lr", "score"):
        page.get_by_role("columnheader", name=field, exact=True).first.wait_for()


def test_the_parent_has_its_parameters_and_its_leaderboard(seen: tuple[Any, str]) -> None:
    page, address = seen
    ui.open_runs(page, address, "first")
    run = ui.run_of(page, "first")
    page.goto(f"{address}#/experiments/1/runs/{run}")
    page.get_by_role("row", name="axes.arm lora | transfer").wait_for()
    ui.open_artifact(page, address, run, "sweep", "leaderboard.png")
    page.locator("img[src^='blob:']").first.wait_for()


def test_four_trials_compare(seen: tuple[Any, str]) -> None:
    page, address = seen
    ui.open_runs(page, address, "first")
    ui.compare_four(page)
    text = page.get_by_role("main").inner_text()
    for field in ("arm", "rank", "layers", "lr", "seed", "score", "gold_loss", "train_loss"):
        assert field in text
    for name in ("Parameters:", "Metrics:"):
        page.get_by_text(name).first.wait_for()
    assert page.get_by_role("tabpanel").get_by_role("combobox").count() == 2


def test_a_trial_has_its_curve_and_its_adapter(seen: tuple[Any, str]) -> None:
    page, address = seen
    ui.open_runs(page, address, "first")
    link = ui.children(page).first.get_by_role("link").first
    run = str(link.get_attribute("href")).rsplit("/", 1)[-1]
    page.goto(f"{address}#/experiments/1/runs/{run}")
    page.get_by_role("tab", name=ui.CURVES).click()
    page.get_by_placeholder(ui.SEARCH).fill("train_loss")  # charts below the fold aren't drawn
    page.get_by_text("train_loss").first.wait_for()
    ui.open_artifact(page, address, run, "adapter", "README.md")
    page.get_by_text("demo-student").first.wait_for()
