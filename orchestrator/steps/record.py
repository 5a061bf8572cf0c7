"""A sweep's record: which rows it has and where in the store their evidence lies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import UserError
from orchestrator.recipe import label
from orchestrator.steps.compare import Result, leaderboard
from orchestrator.steps.figure import draw
from orchestrator.store import Store

RECORD = "sweep.json"
COLUMNS = ("arm", "layers", "structure", "modules", "rank")  # axes that every leaderboard shows


def write_record(store: Store, record: dict[str, Any]) -> Path:
    """Put the record in place, and the leaderboard's picture beside it; returns their folder."""
    folder = store.root / "sweeps" / record["name"]
    folder.mkdir(parents=True, exist_ok=True)
    if found := results(record, store):
        title = f"{record['name']}: {record['task']}, {record['metric']}"
        draw(leaderboard(found, record["baseline"]), title, folder / "leaderboard.png")
    aside = folder / f".{os.getpid()}"
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.rename(folder / RECORD)
    return folder


def check_name(store: Store, name: str, key: str) -> None:
    """UserError where the store has another sweep of this name: its record would be lost."""
    path = store.root / "sweeps" / name / RECORD
    if path.is_file() and json.loads(path.read_text())["key"] != key:
        raise UserError(f"name: {name!r} is another sweep's in {store.root}; choose another --name, or another --store")


def read_record(store: Store, name: str | None) -> dict[str, Any]:
    """The named sweep's, or the latest's. UserError with the names that there are."""
    found = sorted((store.root / "sweeps").glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"sweep: the store {store.root} has none yet; run `pkt sweep`, or name another --store")
    named = {path.parent.name: path for path in found}
    if name is not None and name not in named:
        raise UserError(f"sweep: {name!r} is not in {store.root}; there: {', '.join(named)}")
    return json.loads((named[name] if name else found[-1]).read_text())


def results(record: dict[str, Any], store: Store) -> list[Result]:
    """The evidence of every row that has any: scores of the finished trials, seed by seed."""
    found = []
    further = [path for path in record["sweep"]["axes"] if path not in COLUMNS]
    for row in record["rows"]:
        folders = {seed: store.find("evaluate", key) for seed, key in enumerate(row["trials"])}
        if finished := {seed: folder for seed, folder in folders.items() if folder is not None}:
            recipe = row["recipe"]
            found.append(
                Result(
                    arm=row["label"],
                    layers=recipe["layers"] and label(recipe["layers"]),
                    structure=recipe["structure"] and label(recipe["structure"]),
                    modules=",".join(recipe["modules"]) if recipe["modules"] else None,
                    rank=recipe["rank"] if row["adapted"] else None,
                    lr=recipe["lr"] if row["adapted"] else None,
                    lr_at_edge=row["lr_at_edge"],
                    scores=np.array([read_scores(folder) for folder in finished.values()]),
                    seeds=tuple(finished),
                    other={path: _field(recipe, path) for path in further} if row["adapted"] else {},
                )
            )
    return found


def _field(recipe: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        recipe = recipe[name]
    return recipe


def read_scores(folder: Path) -> list[float]:
    """One trial's scores, in the order of the examples."""
    return [json.loads(line)["score"] for line in (folder / "examples.jsonl").read_text().splitlines()]
