"""What a sweep needs stays, what nobody needs goes, and each byte is counted once."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.sweep.kept import Clutter, Holding, clutter, holdings, note, noted, usage

WEIGHTS = 5000  # bytes


def write(folder: Path, *, name: str = "", partial: Path | None = None, **inputs: Any) -> None:
    (folder / "out").write_text(name)
    if folder.parent.name == "finetune":
        (folder / "adapter_model.safetensors").write_bytes(bytes(WEIGHTS))


MEASURED = Step("measure", write, {"name": "measured"})


def trained(name: str, before: Step | None = None) -> Step:
    return Step("finetune", write, {"name": name}, {"start": MEASURED} | ({"before": before} if before else {}))


def scored(adapter: Step, split: str = "test") -> Step:
    return Step("evaluate", write, {"name": f"{split} of {adapter.config['name']}"}, {"adapter": adapter})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def sweep(store: Store, name: str) -> Path:
    folder = store.root / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def old(path: Path) -> Path:
    for one in (*path.rglob("*"), path):
        os.utime(one, (time.time() - 7200,) * 2)
    return path


def named(found: list[Holding]) -> dict[str, tuple[str, ...]]:
    return {f"{one.step} {(one.folder / 'out').read_text()}": one.sweeps for one in found}


def cleared(store: Store) -> list[Clutter]:
    found = clutter(store, holdings(store))
    for one in found:
        one.remove()
    assert clutter(store, holdings(store)) == []
    return found


def test_what_a_sweep_builds_on_stays_and_what_is_of_none_goes(store: Store) -> None:
    for name in ("one", "two", "nobody's"):
        materialise(scored(trained(name)), store)
    note(sweep(store, "first"), scored(trained("one")), weights=True)
    note(sweep(store, "second"), scored(trained("one")), weights=True)
    note(sweep(store, "second"), scored(trained("two")), weights=True)
    both = ("first", "second")
    assert named(holdings(store)) == {
        "measure measured": both, "finetune one": both, "evaluate test of one": both,
        "finetune two": ("second",), "evaluate test of two": ("second",),
        "finetune nobody's": (), "evaluate test of nobody's": (),
    }  # fmt: skip
    found = cleared(store)
    assert {one.why for one in found} == {"of no sweep"}
    assert sorted(one.step for one in found) == ["evaluate", "finetune"]
    assert sum(one.bytes for one in found) > WEIGHTS
    for name in ("one", "two"):
        assert store.find("evaluate", scored(trained(name)).fingerprint)
        assert store.find("finetune", trained(name).fingerprint)
    assert sorted(path.name for path in (store.root / "finetune").iterdir()) == sorted(
        trained(name).fingerprint for name in ("one", "two")
    )


def test_what_a_killed_sweep_has_finished_stays_for_its_resumption(store: Store) -> None:
    """Its trial has no score yet, and half a line is the last that it wrote."""
    step = scored(trained("killed"), "tune")
    materialise(trained("killed"), store)
    note(folder := sweep(store, "first"), step, weights=False)
    with (folder / "needs.jsonl").open("a") as file:
        file.write('{"step": "evalu')
    note(folder, MEASURED, weights=True)
    assert noted(folder) == {step.fingerprint: False, MEASURED.fingerprint: True}
    partial = store.root / "finetune" / f".{scored(trained('killed')).inputs['adapter'].fingerprint}.partial"
    assert cleared(store) == []
    other = trained("unfinished")
    note(folder, scored(other), weights=True)
    (kept := partial.with_name(f".{other.fingerprint}.partial")).mkdir()
    old(kept)
    assert cleared(store) == []
    assert kept.is_dir()


def test_weights_of_what_was_only_tried_go_once_they_are_scored(store: Store) -> None:
    tried, compared, rung = trained("tried"), trained("compared"), trained("rung")
    further = trained("further", rung)
    for step in (scored(tried, "tune"), scored(compared), scored(rung, "tune")):
        materialise(step, store)
    folder = sweep(store, "first")
    for step in (scored(tried, "tune"), scored(rung, "tune"), scored(further, "tune")):
        note(folder, step, weights=False)
    note(folder, scored(compared), weights=True)
    (found,) = cleared(store)
    assert (found.why, found.path.name) == ("weights of settings that were only tried", tried.fingerprint)
    assert found.bytes == WEIGHTS
    assert store.find("finetune", tried.fingerprint) is None
    assert store.find("finetune", tried.fingerprint, bare=True)
    assert store.find("finetune", rung.fingerprint)  # the next one goes on from it
    note(folder, scored(rung, "tune"), weights=True)  # --keep-tuned
    materialise(scored(further, "tune"), store)
    assert [one.path.name for one in cleared(store)] == [further.fingerprint]


def test_a_sweep_of_before_needs_were_written_down_keeps_its_evidence(store: Store) -> None:
    step = scored(trained("one"))
    materialise(step, store)
    materialise(scored(trained("tried"), "tune"), store)
    record = {"rows": [{"trials": [step.fingerprint, "0" * 20]}]}
    (sweep(store, "first") / "sweep.json").write_text(json.dumps(record))
    assert len(cleared(store)) == 2
    assert set(named(holdings(store))) == {"measure measured", "finetune one", "evaluate test of one"}
    (sweep(store, "first") / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"^store: .*sweep.json was damaged"):
        clutter(store, holdings(store))


def test_what_killed_processes_left_goes_and_what_one_holds_stays(store: Store) -> None:
    materialise(scored(trained("one")), store)
    note(sweep(store, "first"), scored(trained("one")), weights=True)
    place = store.root / "finetune"
    finished, unfinished = trained("one").fingerprint, trained("of no sweep").fingerprint
    gone = [place / f".{finished}-abc123", place / f".{finished}.partial", place / f".{unfinished}.partial"]
    held = place / f".{trained('held').fingerprint}.partial"
    for path in (*gone, held, fresh := place / f".{unfinished}-fresh1"):
        path.mkdir()
        (path / "out").write_text("x" * 100)
    for path in gone:
        old(path)
    (place / ".hidden").mkdir()  # nobody's business
    with (held / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = cleared(store)
    assert sorted(one.path for one in found) == sorted(gone)
    assert {(one.why, one.bytes) for one in found} == {("left by killed processes", 100)}
    assert {path.name for path in place.iterdir()} == {finished, held.name, fresh.name, ".hidden"}
    assert [one.path for one in cleared(store)] == [held]  # its process has ended


def test_a_file_with_two_names_counts_once_and_frees_nothing(store: Store) -> None:
    materialise(scored(trained("one")), store)
    folder = store.find("finetune", trained("one").fingerprint)
    assert folder
    there = holdings(store)
    before = usage(store, there)
    (store.root / "mlflow-artifacts").mkdir()
    os.link(folder / "adapter_model.safetensors", store.root / "mlflow-artifacts" / "adapter_model.safetensors")
    assert usage(store, there) == before | {"mlflow-artifacts": 0}
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert sum(before.values()) == sum(path.stat().st_size for path in files) - WEIGHTS
    (found,) = [one for one in clutter(store, there) if one.step == "finetune"]
    assert found.bytes == sum(path.stat().st_size for path in folder.iterdir()) - WEIGHTS
