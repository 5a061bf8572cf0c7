"""A scoring that was ended goes on from what the model had said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trainings import recipe

from orchestrator.pipeline import evaluate_step
from orchestrator.prepare.ready import prepare
from orchestrator.scoring import budgets
from orchestrator.scoring.evaluate import SAID
from orchestrator.step import materialise
from orchestrator.store import Store

Kept = list[dict[str, Any]]


def ended(some: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """One batch, and no more."""
    yield next(iter(some))
    raise KeyboardInterrupt


def kept(path: Path) -> Kept:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_what_was_said_is_not_asked_again(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by a kept answer that the model would not give; what a killed process wrote half is asked again."""
    monkeypatch.setattr(budgets, "ANSWERS", 400)
    one = recipe("lora", evaluate={"examples": 24})
    step, whole, again = evaluate_step(one, prepare(one), "test"), Store(tmp_path / "whole"), Store(tmp_path / "again")
    expected = kept(materialise(step, whole) / "examples.jsonl")
    with pytest.raises(KeyboardInterrupt):
        materialise(step, again, ended)
    (path,) = again.root.glob(f"**/{SAID}")
    first = kept(path)
    assert 0 < len(first) < 24
    first[0]["text"] = "something else"
    path.write_text("".join(f"\n{json.dumps(line)}" for line in first) + '\n\n{"id": "demo-test-3", "te')
    found = kept(materialise(step, again) / "examples.jsonl")
    changed = [row["id"] for row, other in zip(found, expected, strict=True) if row["output"] != other["output"]]
    assert changed == [first[0]["id"]]
    assert next(row for row in found if row["id"] == changed[0])["output"] == "something else"
