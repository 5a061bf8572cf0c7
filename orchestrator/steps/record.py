"""A sweep's record: which rows it has and where in the store their evidence lies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import UserError
from orchestrator.recipe import label
from orchestrator.steps.compare import Result
from orchestrator.store import Store


def write_record(store: Store, record: dict[str, Any]) -> Path:
    """Put the record in place at once."""
    folder = store.root / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{record['name']}.{os.getpid()}"
    aside.write_text(json.dumps(record, indent=1) + "\n")
    return aside.rename(folder / f"{record['name']}.json")


def read_record(store: Store, name: str | None) -> dict[str, Any]:
    """The named sweep's, or the latest's. UserError with the names that there are."""
    found = sorted((store.root / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"sweep: the store {store.root} has none yet; run `pkt sweep`, or name another --store")
    if name is None:
        return json.loads(found[-1].read_text())
    for path in found:
        if path.stem == name:
            return json.loads(path.read_text())
    raise UserError(f"sweep: {name!r} is not in {store.root}; there: {', '.join(path.stem for path in found)}")


def results(record: dict[str, Any], store: Store) -> list[Result]:
    """The evidence of every row that has any: scores of the finished trials, seed by seed."""
    found = []
    for row in record["rows"]:
        folders = [store.find("evaluate", key) for key in row["trials"]]
        if finished := [folder for folder in folders if folder is not None]:
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
                    scores=np.array([read_scores(folder) for folder in finished]),
                )
            )
    return found


def read_scores(folder: Path) -> list[float]:
    """One trial's scores, in the order of the examples."""
    return [json.loads(line)["score"] for line in (folder / "examples.jsonl").read_text().splitlines()]
