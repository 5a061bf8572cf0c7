"""The rows that a step used, kept beside its result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.step import Step, materialise
from orchestrator.store import Store, fingerprint
from orchestrator.tasks.base import Example


def data_step(examples: list[Example]) -> Step:
    """Rows named by their contents, so that a path or a file name never matters."""
    rows = [_said(example) for example in examples]
    return Step("data", write, identity={"rows": fingerprint(rows)}, where={"rows": rows})


def _said(example: Example) -> dict[str, Any]:
    """A row without what it leaves open: fields that came later give older rows no other name."""
    return {name: value for name, value in example.model_dump().items() if value or name in ("id", "answer")}


def write(folder: Path, *, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """One row a line. UserError where they stayed behind in a store that this machine doesn't see."""
    if rows is None:
        raise UserError(Store(folder.parents[1]).not_shared())
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return {"rows": len(rows)}


def light(step: Step, store: Store) -> Step:
    """The same step for whoever has the store: the rows lie there, and don't travel with every trial."""
    if step.name == "data":
        materialise(step, store)
        return replace(step, where={})
    return replace(step, inputs={name: light(one, store) for name, one in step.inputs.items()})


def read(folder: Path) -> list[Example]:
    """The examples again; no checks, since they passed them on the way in."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold U+2028
    return [Example.model_validate_json(line) for line in lines if line]
