"""What a person sees of a sweep in MLflow, as pictures: needs playwright and a Chromium.

    python experiments/demo/screenshots.py STORE SWEEP OUT_DIR

writes runs.png, compare.png and artifacts.png. The steps are functions, which tests/browser/ takes too.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

# The texts of MLflow 3.17 that the steps look for; another version may say them otherwise.
CHILD = " seed "  # what every trained run's name has
TICK = "Press Space"
COMPARE = "Compare"
COMPARED = "Comparing 4 Runs"
CURVES = "Model metrics"
SEARCH = "Search metric charts"
COLUMNS = [
    "attributes.`Created`",
    *(f"params.`{one}`" for one in ("stage", "arm", "layers", "rank", "lr", "seed")),
    *(f"metrics.`{one}`" for one in ("score", "gold_loss")),
]
ASSISTANT = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
STATE = 'MLflowLocalStorage-1.1-ExperimentPage-["1"]-ReactComponentState'
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]


def chromium() -> str | None:
    """The browser that is there."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def served(store: Path) -> Iterator[str]:
    """The address of `pkt ui` on a store, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("pkt")), "ui", "--store", str(store), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                break
            except URLError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(60)


@contextmanager
def browsing(executable: str) -> Iterator[Any]:
    """A page of a fresh headless browser, its assistant shut."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(30_000)
        words = [f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)});" for key, value in ASSISTANT.items()]
        page.add_init_script("".join(words))
        yield page
        browser.close()


def children(page: Any) -> Any:
    """The trained runs in the list."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=CHILD))


def parent(page: Any, sweep: str) -> Any:
    """The sweep's own line in the list."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=sweep, exact=True))


def open_runs(page: Any, address: str, sweep: str) -> None:
    """The list of runs with the columns that tell trials apart, the sweep unfolded."""
    page.goto(f"{address}#/experiments/1/runs")
    parent(page, sweep).wait_for()
    change = "([key, columns]) => localStorage.setItem(key, JSON.stringify({...JSON.parse(localStorage.getItem(key)), "
    page.evaluate(change + "selectedColumns: columns}))", [STATE, COLUMNS])
    page.reload()
    parent(page, sweep).get_by_role("button").first.click()
    children(page).first.wait_for()


def compare_four(page: Any) -> None:
    """Tick four trials of those that are listed, and press Compare."""
    last = children(page).count() - 1
    for index in (0, last // 3, 2 * last // 3, last):
        children(page).nth(index).get_by_role("checkbox", name=TICK).check()
    page.get_by_role("button", name=COMPARE, exact=True).click()
    page.get_by_role("heading", name=COMPARED).wait_for()
    page.get_by_role("tabpanel").locator("svg").first.wait_for()


def open_artifact(page: Any, address: str, run: str, folder: str, name: str) -> None:
    """A run's artifacts, one of them shown."""
    page.goto(f"{address}#/experiments/1/runs/{run}/artifacts")
    page.get_by_role("listitem").filter(has_text=folder).get_by_text(folder).first.click()
    page.get_by_text(name, exact=True).first.click()


def run_of(page: Any, sweep: str) -> str:
    """A listed run's id, from its link."""
    return str(page.get_by_role("link", name=sweep, exact=True).get_attribute("href")).rsplit("/", 1)[-1]


def main(store: str, sweep: str, out: str) -> None:
    """Write the three pictures."""
    executable, folder = chromium(), Path(out)
    if not executable:
        sys.exit("no Chromium here")
    folder.mkdir(parents=True, exist_ok=True)
    with served(Path(store)) as address, browsing(executable) as page:
        open_runs(page, address, sweep)
        run = run_of(page, sweep)
        page.screenshot(path=folder / "runs.png")
        compare_four(page)
        page.screenshot(path=folder / "compare.png")
        open_artifact(page, address, run, "sweep", "leaderboard.png")
        page.get_by_role("img", name="leaderboard.png").or_(page.locator("img[src^='blob:']")).first.wait_for()
        page.get_by_text("sweep.json", exact=True).hover()  # which waits until the folder has unfolded
        page.screenshot(path=folder / "artifacts.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
