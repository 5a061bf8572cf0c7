"""What a store holds, which sweeps need it, and what nobody needs.

    note(folder, step, weights=True)              # in a sweep's folder, before the step is made
    for one in (there := holdings(store)): ...    # every finished step: its size, its sweeps
    for one in clutter(store, there): one.remove()

What a sweep builds on is written down before it is made, so that what a killed one has finished stays for the day on
which it is resumed.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.step import Step
from orchestrator.store import BARE, MANIFEST, Store

NEEDS = "needs.jsonl"  # in a sweep's folder: a line a trial, and one a step that many trials share
ASIDE = re.compile(r"\.([0-9a-f]{20})(\.partial|-\w+)")  # names of what isn't finished
LARGE = ("adapter_model.safetensors", "rung")  # of a training: what a setting that was only tried doesn't keep
OLD = 3600.0  # seconds after which nobody is writing a folder any more


@dataclass(frozen=True)
class Holding:
    """A finished step."""

    folder: Path
    bytes: int
    time: float  # when it was made
    sweeps: tuple[str, ...]  # that build on it
    bare: bool  # without its large files, which were let go

    @property
    def step(self) -> str:
        """What it is of."""
        return self.folder.parent.name


@dataclass(frozen=True)
class Clutter:
    """What may go, and why."""

    path: Path
    bytes: int  # that become free: not those of files that MLflow has, too
    why: str
    remove: Callable[[], None]

    @property
    def step(self) -> str:
        """What it is of."""
        return self.path.parent.name


class Weights:
    """Which trainings' weights a sweep needs once they are scored: written down before they are made."""

    def __init__(self, store: Store, sweep: Path) -> None:
        self._store, self._sweep = store, sweep
        self._needed = noted(sweep)  # by the evaluation's fingerprint

    def needed(self, step: Step) -> bool:
        """Of an evaluation: whether the weights that it scores stay."""
        return self._needed.get(step.fingerprint, True)

    def note(self, step: Step, *, tried: bool) -> None:
        """An evaluation is about to be made, which only `tried` a setting, or is compared.

        Weights that were there before the sweep stay, and so do those that it needs for anything else.
        """
        adapter, before = step.inputs.get("adapter"), self._needed.get(step.fingerprint)
        others = before is None and adapter and self._store.has(adapter.name, adapter.fingerprint)
        weights = bool(not tried or others or before)
        if before != weights:
            note(self._sweep, step, weights=weights)
            self._needed[step.fingerprint] = weights

    def let_go(self, step: Step) -> None:
        """Remove those of an evaluation that has its score, if they aren't needed any more."""
        adapter = step.inputs.get("adapter")
        if adapter and not self._needed[step.fingerprint] and self._store.has(step.name, step.fingerprint):
            self._store.let_go(adapter.name, adapter.fingerprint, LARGE)


def note(folder: Path, step: Step, *, weights: bool) -> None:
    """A sweep needs this step and all that it builds on; without `weights` its adapter's only until it is there."""
    steps = sorted({f"{one.name}/{one.fingerprint}" for one in step.ancestors()})
    line = {"step": f"{step.name}/{step.fingerprint}", "steps": steps, "weights": weights}
    with (folder / NEEDS).open("a") as file:
        file.write(f"\n{json.dumps(line)}\n")  # after half a line that a killed process left


def noted(folder: Path) -> dict[str, bool]:
    """By fingerprint, whether the weights are needed: what a sweep has written down so far."""
    return {line["step"].partition("/")[2]: line["weights"] for line in _lines(folder)}


def holdings(store: Store) -> list[Holding]:
    """Every finished step of the store."""
    users = defaultdict(list)
    for sweep, needed in _needed(store).items():
        for name in needed:
            users[name].append(sweep)
    return [
        Holding(
            folder, sum(size for size, _ in _files(folder)), (folder / MANIFEST).stat().st_mtime,
            tuple(users[_name(folder)]), (folder / BARE).exists(),
        )
        for folder in _folders(store)
    ]  # fmt: skip


def clutter(store: Store, there: Sequence[Holding]) -> list[Clutter]:
    """What nobody needs: steps of no sweep, weights of what was only tried, and what killed processes left."""
    needed, whole = {name for names in _needed(store).values() for name in names}, _whole(store)
    found = []
    for one in there:
        step, key = one.step, one.folder.name
        if not one.sweeps:
            found.append(Clutter(one.folder, _free(one.folder), "of no sweep", partial(store.remove, step, key)))
        elif step == "finetune" and not one.bare and _name(one.folder) not in whole:
            size = sum(_free(one.folder / name) for name in LARGE)
            why = "weights of settings that were only tried"
            found.append(Clutter(one.folder, size, why, partial(store.let_go, step, key, LARGE)))
    for path in store.root.glob("*/.*"):
        if (name := ASIDE.fullmatch(path.name)) and not _at_work(path):
            kept = name[2] == ".partial" and f"{path.parent.name}/{name[1]}" in needed
            if not kept or store.find(path.parent.name, name[1], bare=True):
                found.append(Clutter(path, _free(path), "left by killed processes", partial(shutil.rmtree, path)))
    return found


def usage(store: Store, there: Sequence[Holding]) -> dict[str, int]:
    """Bytes by what lies in the store: its steps by kind, then all else. A file with two names counts once."""
    seen: set[int] = set()
    found: dict[str, int] = {}
    kinds = sorted({one.step for one in there})
    for place in [*(store.root / kind for kind in kinds), *sorted(store.root.iterdir())]:
        if place.name not in found:
            files = {inode: size for size, inode in _files(place) if inode not in seen}
            found[place.name] = sum(files.values())
            seen |= files.keys()
    return found


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = []
    for text in (folder / NEEDS).read_text().splitlines() if (folder / NEEDS).is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:  # half of one: what it was about was never begun
            continue
    return lines


def _sweeps(store: Store) -> Iterator[tuple[Path, list[str]]]:
    """Each sweep's folder, and the evaluations that its record names: those of before it wrote down its needs."""
    for folder in sorted(store.root.glob("sweeps/*/")):
        path = folder / "sweep.json"
        try:
            rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        except (ValueError, KeyError) as error:
            raise UserError(f"store: {path} was damaged ({error}); what it needs isn't known: delete it") from error
        yield folder, [f"evaluate/{key}" for row in rows for key in row["trials"]]


def _needed(store: Store) -> dict[str, set[str]]:
    """By sweep, the names of all that it builds on."""
    by_key = {folder.name: folder for folder in _folders(store)}
    before = {_name(folder): _inputs(folder) for folder in by_key.values()}
    found: dict[str, set[str]] = {}
    for folder, recorded in _sweeps(store):
        left = [*recorded, *(name for line in _lines(folder) for name in line["steps"])]
        names: set[str] = set()
        while left:
            if (name := left.pop()) not in names:
                names.add(name)
                left += [_name(by_key[key]) for key in before.get(name, ()) if key in by_key]
        found[folder.name] = names
    return found


def _whole(store: Store) -> set[str]:
    """Names of trainings whose weights somebody needs: for a score that is still to come, too, or to be carried."""
    found = {f"finetune/{key}" for one in ("carry", "twin") for folder in store.root.glob(f"{one}/[!.]*")
             for key in _inputs(folder)}  # fmt: skip
    for folder, recorded in _sweeps(store):
        done = {line["step"]: line for line in _lines(folder)}  # the last of a trial counts
        for name, line in done.items():
            if line["weights"] or not (store.root / name / MANIFEST).is_file():
                found.update(line["steps"])
        for name in set(recorded) - set(done):
            found.update(f"finetune/{key}" for key in _inputs(store.root / name))
    return found


def _inputs(folder: Path) -> list[str]:
    """Fingerprints of what a finished step was made from."""
    try:
        return list(json.loads((folder / MANIFEST).read_text())["lineage"]["inputs"].values())
    except (OSError, ValueError, KeyError):
        return []


def _folders(store: Store) -> list[Path]:
    """Of finished steps."""
    return sorted(path.parent for path in store.root.glob(f"*/*/{MANIFEST}") if not path.parent.name.startswith("."))


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _files(place: Path) -> Iterator[tuple[int, int]]:
    """Size and number of each file."""
    for path in place.rglob("*") if place.is_dir() else [place]:
        if path.is_file() and not path.is_symlink():
            facts = path.stat()
            yield facts.st_size, facts.st_ino


def _free(place: Path) -> int:
    """Bytes that are free once it is removed."""
    paths: Iterable[Path] = place.rglob("*") if place.is_dir() else [place]
    return sum(path.stat().st_size for path in paths if path.is_file() and path.stat().st_nlink == 1)


def _at_work(place: Path) -> bool:
    """Whether a worker that outlives its sweep has the lock of what isn't finished, or was writing a moment ago."""
    lock = place / "lock"
    if lock.is_file():
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    return time.time() - max(path.stat().st_mtime for path in (place, *place.rglob("*"))) < OLD
