"""A sweep's runs in MLflow as a person meets them: a real sweep, the real server, a real browser without a network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo import screenshots as ui

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.xdist_group("sweep")]
SWEEP = {
    "name": "seen",
    "recipe": {"finetune": {"examples": 64, "batch_size": 16, "epochs": 1}, "evaluate": {"examples": 10}},
    "axes": {"arm": ["lora", "transfer", "spectrum_control"], "rank": [4, 8], "layers": ["last"]},
    "lr": [5.0e-3],
    "repeats": 2,
    "tuned_teacher": False,
    "gate": None,
}
OURS_NOT = "users/current"  # MLflow asks who is logged in, and this server knows no users


@pytest.fixture(scope="module")
def served(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    if not ui.chromium():
        pytest.skip("no Chromium on the path")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    command = [str(Path(sys.executable).with_name("pkt")), "sweep", "sweep.yaml", "--trials-at-once", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    with ui.served(folder / "pkt-store") as address:
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
    ui.parent(page, "seen").wait_for()
    assert ui.children(page).count() == 0
    ui.open_runs(page, address, "seen")
    assert ui.children(page).count() >= 12
    for field in ("arm", "rank", "lr", "score"):
        page.get_by_role("columnheader", name=field, exact=True).first.wait_for()


def test_the_parent_has_its_parameters_and_its_leaderboard(seen: tuple[Any, str]) -> None:
    page, address = seen
    ui.open_runs(page, address, "seen")
    run = ui.run_of(page, "seen")
    page.goto(f"{address}#/experiments/1/runs/{run}")
    page.get_by_role("row", name="axes.arm lora | transfer | spectrum_control").wait_for()
    ui.open_artifact(page, address, run, "sweep", "leaderboard.png")
    page.locator("img[src^='blob:']").first.wait_for()


def test_four_trials_compare(seen: tuple[Any, str]) -> None:
    page, address = seen
    ui.open_runs(page, address, "seen")
    ui.compare_four(page)
    text = page.get_by_role("main").inner_text()
    for field in ("arm", "rank", "layers", "lr", "seed", "score", "gold_loss", "train_loss"):
        assert field in text
    for name in ("Parameters:", "Metrics:"):
        page.get_by_text(name).first.wait_for()
    assert page.get_by_role("tabpanel").get_by_role("combobox").count() == 2


def test_a_trial_has_its_curve_and_its_adapter(seen: tuple[Any, str]) -> None:
    page, address = seen
    ui.open_runs(page, address, "seen")
    link = ui.children(page).first.get_by_role("link").first
    run = str(link.get_attribute("href")).rsplit("/", 1)[-1]
    page.goto(f"{address}#/experiments/1/runs/{run}")
    page.get_by_role("tab", name=ui.CURVES).click()
    page.get_by_placeholder(ui.SEARCH).fill("train_loss")  # charts below the fold aren't drawn
    page.get_by_text("train_loss").first.wait_for()
    ui.open_artifact(page, address, run, "adapter", "README.md")
    page.get_by_text("demo-student").first.wait_for()
