"""A sweep's record: which rows it has and where in the store their evidence lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import UserError
from orchestrator.report.evidence import manifest
from orchestrator.store import MANIFEST, Store
from orchestrator.store.directory import held
from orchestrator.store.files import appearing
from orchestrator.transfer.arms import ARMS
from orchestrator.verdict.estimates import Beside, Result
from orchestrator.verdict.words import label

RECORD, ASKED = "sweep.json", "asked.json"  # what came out, and what was asked for
REFUSED = "refused"  # in the latter: nothing was trained under this name
COLUMNS = ("arm", "layers", "structure", "modules", "rank")  # axes that every leaderboard shows


def write_record(store: Store, record: dict[str, Any]) -> list[Result]:
    """Put the record in place; returns its evidence."""
    folder = store.root / "sweeps" / record["name"]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RECORD, record)
    return results(record, store)


def _write(path: Path, value: Any) -> None:
    with appearing(path) as file:
        file.write_text(json.dumps(value, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"store: {path} was damaged ({error}); delete it, and run the sweep's command again") from error


@contextmanager
def begun(store: Store, name: str, key: str, asked: dict[str, Any]) -> Iterator[Path]:
    """The sweep's folder, with what was asked for written down, so that it can be resumed by its name alone.

    One process at a time is at a sweep. UserError where the name is another sweep's: the difference is told. Of one
    that is refused while open, before it trained anything, the name is free for another.
    """
    folder = store.root / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{name}.lock")
    with held(lock, f"another process runs the sweep {name}; waiting for it"), store.kept(folder):
        path = folder / ASKED
        before: dict[str, Any] = _read(path) if path.is_file() else {REFUSED: True}
        free = before.get(REFUSED, False)
        if not free and before["key"] != key:
            different = differences(before["sweep"], asked) or "the models or the rows have changed"
            raise UserError(
                f"name: {name!r} is another sweep's in {store.address} ({different}); choose another --name"
            )
        told = {"key": key, "sweep": asked}
        if free:
            _write(path, told)
            store.send(path)  # a machine that is lost from now on leaves a sweep that another can resume
        try:
            yield folder
        except Refused:
            if free:  # else it has trained before, by force
                _write(path, told | {REFUSED: True})
                store.send(path)
            raise


class Refused(UserError):
    """A sweep that ends before it trains anything."""


def asked_for(store: Store, name: str) -> dict[str, Any]:
    """What the named sweep is to do. UserError with the names that there are."""
    store.bring("sweeps")
    path = store.root / "sweeps" / name / ASKED
    if not path.is_file():
        there = ", ".join(sorted(one.parent.name for one in path.parent.parent.glob(f"*/{ASKED}"))) or "none"
        raise UserError(f"resume: no sweep {name!r} was begun in {store.address}; there: {there}")
    return _read(path)["sweep"]


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """Fields that two sweeps don't share, for people: `recipe.rank: 8, now 16`."""
    found = []
    for field in {**before, **now}:
        old, new = before.get(field), now.get(field)
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(differences(old, new, f"{prefix}{field}."))
        elif old != new:
            found.append(f"{prefix}{field}: {json.dumps(old)}, now {json.dumps(new)}")
    return "; ".join(filter(None, found))


def read_record(store: Store, name: str | None) -> dict[str, Any]:
    """The named sweep's, or the latest's. UserError with the names that there are."""
    store.bring("sweeps")
    found = sorted((store.root / "sweeps").glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    named = {path.parent.name: path for path in found}
    begun = [path.parent.name for path in (store.root / "sweeps").glob(f"*/{ASKED}") if path.parent.name not in named]
    wanted = name or (None if found else next(iter(begun), None))
    if wanted in begun:
        raise UserError(f"sweep: {wanted!r} was begun and has not ended; `pkt sweep --resume {wanted}` goes on with it")
    if not found:
        raise UserError(f"sweep: the store {store.address} has none yet; run `pkt sweep`, or name another --store")
    if name is not None and name not in named:
        raise UserError(f"sweep: {name!r} is not in {store.address}; there: {', '.join(named)}")
    return _read(named[name] if name else found[-1])


def results(record: dict[str, Any], store: Store) -> list[Result]:
    """The evidence of every row that has any: scores of the finished trials, seed by seed."""
    found = []
    further = [path for path in record["sweep"]["axes"] if path not in COLUMNS]
    told = cache(partial(_made, store))
    options = _options([row["recipe"]["arm"] for row in record["rows"] if row["adapted"]])
    for row in record["rows"]:
        folders = {seed: store.find("evaluate", key) for seed, key in enumerate(row["trials"])}
        if finished := {seed: folder for seed, folder in folders.items() if folder is not None}:
            recipe = row["recipe"]
            lines = [read_examples(folder) for folder in finished.values()]
            trainings = _trainings(store, list(finished.values()))
            clipped, grad_norm = _gradients(trainings)
            found.append(
                Result(
                    arm=row["label"],
                    layers=recipe["layers"] and label(recipe["layers"]),
                    structure=recipe["structure"] and label(recipe["structure"]),
                    modules=",".join(recipe["modules"]) if recipe["modules"] else None,
                    rank=recipe["rank"] if row["adapted"] else None,
                    lr=recipe["lr"] if row["adapted"] else None,
                    lr_at_edge=row["lr_at_edge"],
                    validation=row["validation"] and tuple(row["validation"]),
                    scores=np.array([[line["score"] for line in some] for some in lines]),
                    seeds=tuple(finished),
                    cut=float(np.mean([line.get("cut", False) for some in lines for line in some])),
                    clipped=clipped,
                    grad_norm=grad_norm,
                    beside={name: _scores(store, keys) for name, keys in row.get("beside", {}).items()},
                    also=_also(lines),
                    before=_before(store, row.get("before", ())),
                    seconds=_seconds(trainings, told),
                    other={path: _field(recipe, path) for path in further if _means(row, path)}
                    | {
                        name: _plain(recipe["arm"][name])
                        for name in options
                        if row["adapted"] and name in recipe["arm"]
                    },
                )
            )
    return found


def _options(arms: Sequence[dict[str, Any]]) -> list[str]:
    """Fields by which arms of one kind differ in a sweep: as further axes."""
    values: dict[tuple[str, str], set[str]] = {}
    for arm in arms:
        for name, value in arm.items():
            values.setdefault((arm["kind"], name), set()).add(json.dumps(value))
    return list(dict.fromkeys(name for (_, name), found in values.items() if len(found) > 1))


def _plain(value: Any) -> Any:
    return label(value) if isinstance(value, dict) and "kind" in value else value


def _before(store: Store, keys: Sequence[str]) -> float | None:
    """The mean score of a row's adapters before any step, where they do something then."""
    folders = [folder for key in keys if (folder := store.find("evaluate", key))]
    return float(np.mean([read_scores(folder) for folder in folders])) if folders else None


def _scores(store: Store, keys: list[str]) -> Beside:
    """Of the trials that were scored there."""
    there = {seed: folder for seed, key in enumerate(keys) if (folder := store.find("evaluate", key))}
    rows = [read_examples(folder) for folder in there.values()]
    ids = tuple(line["id"] for line in rows[0]) if rows else ()
    return Beside(tuple(there), np.array([[line["score"] for line in some] for some in rows]), ids, _also(rows))


def _also(trials: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Each figure beside the score, as a mean over all examples that have it."""
    found: dict[str, list[float]] = {}
    for line in chain.from_iterable(trials):
        for name, value in line.get("also", {}).items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _trainings(store: Store, evaluated: list[Path]) -> list[dict[str, Any]]:
    """What is told of the trainings behind some scores, as far as they are in the store."""
    keys = [manifest(folder)["lineage"]["inputs"].get("adapter") for folder in evaluated]
    return [manifest(folder) for key in keys if key and (folder := store.find("finetune", key, bare=True))]


def _made(store: Store, key: str) -> dict[str, Any] | None:
    """What is told of a step of which the fingerprint alone is known, where it is here."""
    place = next(store.root.glob(f"*/{key}/{MANIFEST}"), None)
    return manifest(place.parent) if place else None


def _seconds(
    trainings: list[dict[str, Any]], told: Callable[[str], dict[str, Any] | None]
) -> tuple[float, float] | None:
    """Of a row's trainings, a mean: the seconds of one, and those of all that it was made from, as if it were alone.

    What rows share is counted for each of them: the teacher's passes and training, maps and scales. None where no
    training is known, or something that one was made from isn't here.
    """
    found = []
    for training in trainings:
        before, left = dict[str, float](), [training]
        while left:
            for key in left.pop()["lineage"]["inputs"].values():
                if key not in before:
                    if (made := told(key)) is None:
                        return None
                    before[key] = made["seconds"]
                    left.append(made)
        found.append((training["facts"]["training_seconds"], sum(before.values())))
    return (float(np.mean([own for own, _ in found])), float(np.mean([rest for _, rest in found]))) if found else None


def _gradients(trainings: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Share of their clipped steps, and median norm. None where none is known."""
    facts = [training["facts"] for training in trainings]
    if not facts or any("clipped" not in one for one in facts):
        return None, None
    return float(np.mean([one["clipped"] for one in facts])), float(np.mean([one["grad_norm"] for one in facts]))


def _means(row: dict[str, Any], path: str) -> bool:
    """Whether a further axis is one of this row's: how a teacher is measured is none of plain LoRA's."""
    kind = row["recipe"]["arm"]["kind"]
    needs = {*ARMS[kind].needs}
    carries = needs & {"carried", "teacher_update", "excess"}
    asks = {"measure": needs - carries, "update": ARMS[kind].takes_update, "carry": carries}
    return row["adapted"] and bool(asks.get(path.split(".")[0], True))


def _field(recipe: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        recipe = recipe[name]
    return recipe


def read_scores(folder: Path) -> list[float]:
    """One trial's scores, in the order of the examples."""
    return [line["score"] for line in read_examples(folder)]


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """One trial's examples, in their order."""
    lines = (folder / "examples.jsonl").read_text(encoding="utf-8").split("\n")  # texts may hold U+2028
    return [json.loads(line) for line in lines if line]
