"""`pkt store`: what it says of a store, and what it leaves of one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import pkt  # noqa: F401  (a fixture)

from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.sweep.kept import note

Call = Callable[..., tuple[int, str, str]]


def write(folder: Path, *, bytes: int, partial: Path | None = None, **inputs: Any) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"x" * bytes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Of a sweep, a step of 3 MB and one that was only tried; and one of `pkt run`."""
    kept = Store(tmp_path / "pkt-store")
    shared = Step("measure", write, {"bytes": 5_000})
    (sweep := kept.root / "sweeps" / "first").mkdir(parents=True)
    for size, weights in ((3_000_000, True), (2_000_000, False), (1_000_000, None)):
        step = Step(
            "evaluate", write, {"bytes": 10}, {"adapter": Step("finetune", write, {"bytes": size}, {"s": shared})}
        )
        materialise(step, kept)
        if weights is not None:
            note(sweep, step, weights=weights)
    return kept


def sizes(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_it_lists_counts_and_clears(pkt: Call, store: Store) -> None:  # noqa: F811
    code, out, err = pkt("store", "ls")
    assert (code, err) == (0, "")
    lines = sizes(out)
    assert len(lines) == 7
    assert [line.split(" ")[0] for line in lines[:3]] == ["3", "2", "1"]
    assert re.match(r"3 MB \d s finetune/[0-9a-f]{20} first$", lines[0])
    assert lines[2].endswith(" -")
    code, out, _ = pkt("store", "du")
    assert code == 0
    assert [line for line in sizes(out) if "finetune" in line] == ["6 MB finetune 3 steps"]
    assert [line for line in sizes(out) if "no sweep" in line] == ["1 MB of no sweep"]
    assert sizes(out)[-1] == "`pkt store gc` would free 3 MB."
    before = sorted(store.root.rglob("*"))
    code, out, err = pkt("store", "gc")
    assert (code, err) == (0, "")
    assert sizes(out)[-1] == "3 MB would be freed: `pkt store ls` shows each step, --yes removes it"
    assert "1 MB finetune 1 of no sweep" in sizes(out)
    assert "2 MB finetune 1 weights of settings that were only tried" in sizes(out)
    assert sorted(store.root.rglob("*")) == before
    code, out, _ = pkt("store", "gc", "--yes")
    assert (code, sizes(out)[-1]) == (0, "3 MB freed")
    assert pkt("store", "gc", "--yes") == (0, "nothing to remove\n", "")
    lines = sizes(pkt("store", "ls")[1])
    assert len(lines) == 5
    assert sum(line.endswith(" first (weights gone)") for line in lines) == 1


def test_machines_are_told_the_same(pkt: Call, store: Store) -> None:  # noqa: F811
    rows = json.loads(pkt("store", "ls", "--json")[1])
    assert {row["step"]: len(row["sweeps"]) for row in rows if row["step"] == "measure"} == {"measure": 1}
    assert abs(rows[0]["time"] - time.time()) < 60
    told = json.loads(pkt("store", "du", "--json")[1])
    assert told["places"]["finetune"]["steps"] == 3
    assert told["places"]["sweeps"]["steps"] is None
    of_sweeps = {row["key"]: row["bytes"] for row in rows if row["sweeps"]}
    assert told["sweeps"] == {"first": sum(of_sweeps.values())}
    assert told["of_no_sweep"] == sum(row["bytes"] for row in rows) - told["sweeps"]["first"]
    shown = json.loads(pkt("store", "gc", "--json")[1])
    assert shown["removed"] is False
    assert shown["bytes"] == told["gc_would_free"] == sum(one["bytes"] for one in shown["clutter"])
    assert all(Path(one["path"]).exists() for one in shown["clutter"])
    done = json.loads(pkt("store", "gc", "--yes", "--json")[1])
    assert done == shown | {"removed": True}
    assert json.loads(pkt("store", "gc", "--json")[1]) == {"removed": False, "bytes": 0, "clutter": []}


def test_nothing_goes_while_somebody_is_at_work(pkt: Call, store: Store) -> None:  # noqa: F811
    before = sorted(store.root.rglob("*"))
    hold = (
        "import sys, pathlib; from orchestrator.store import Store\n"
        "with Store(pathlib.Path(sys.argv[1])).in_use(): print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", hold, str(store.root)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline()
        code, out, err = pkt("store", "gc", "--yes")
        assert (code, out) == (2, "")
        assert err == f"pkt: store: a sweep or a run is at work in {store.root}; try again once it has ended\n"
        assert pkt("store", "gc")[0] == 0
        other.kill()
    assert [path for path in sorted(store.root.rglob("*")) if path.name != ".lock"] == before
    assert pkt("store", "gc", "--yes")[0] == 0


@pytest.mark.parametrize("verb", ["ls", "du", "gc"])
def test_a_store_that_is_not_there(pkt: Call, verb: str, tmp_path: Path) -> None:  # noqa: F811
    code, out, err = pkt("store", verb, "--store", "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith(f"pkt: store: {tmp_path}/nowhere isn't there; name a folder")
    assert len(err.splitlines()) == 1
    (tmp_path / "empty").mkdir()
    assert pkt("store", verb, "--store", "empty")[0] == 0
    assert list((tmp_path / "empty").iterdir()) == []
