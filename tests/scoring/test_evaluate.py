"""A scoring that was ended goes on from what the model had said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from trainings import recipe

from orchestrator.models import borrowed
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.pipeline import evaluate_step, finetune_step
from orchestrator.prepare.ready import prepare
from orchestrator.scoring import budgets
from orchestrator.scoring.asking import asked as questions_of
from orchestrator.scoring.engine import loaded
from orchestrator.scoring.evaluate import SAID, evaluate, judged, put
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.tasks.template import stops

Kept = list[dict[str, Any]]


def ended(some: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """A turn, a half, and no more."""
    yield from islice(some, 12)
    raise KeyboardInterrupt


def kept(path: Path) -> Kept:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_what_was_said_is_not_asked_again(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by a kept answer that the model would not give; what a killed process wrote half is asked again."""
    monkeypatch.setattr(budgets, "TURN", 1)
    monkeypatch.setattr(budgets, "ROWS", 8)
    one = recipe("lora", evaluate={"examples": 24})
    step, whole, again = evaluate_step(one, prepare(one), "test"), Store(tmp_path / "whole"), Store(tmp_path / "again")
    expected = kept(materialise(step, whole) / "examples.jsonl")
    with pytest.raises(KeyboardInterrupt):
        materialise(step, again, ended)
    (path,) = again.root.glob(f"**/{SAID}")
    first = kept(path)
    assert 12 <= len(first) < 24
    first[0]["text"] = "something else"
    path.write_text("".join(f"\n{json.dumps(line)}" for line in first) + '\n\n{"id": "demo-test-3", "te')
    found = kept(materialise(step, again) / "examples.jsonl")
    changed = [row["id"] for row, other in zip(found, expected, strict=True) if row["output"] != other["output"]]
    assert changed == [first[0]["id"]]
    assert next(row for row in found if row["id"] == changed[0])["output"] == "something else"


def test_several_tasks_are_put_to_a_model_that_is_loaded_once(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers in words and a choice among four; each scores what its own step scores, in a process of its own."""
    rows = tmp_path / "mmlu"
    rows.mkdir()
    for split in ("train", "test"):
        turns = [(f"{split} {number} of A B C D?", "ABCD"[number % 4]) for number in range(320)]
        chats = [
            {"answer": gold, "messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": gold}]}
            for ask, gold in turns
        ]
        (rows / f"{split}.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    loads: list[str] = []

    def noted(folder: str, **how: Any) -> Any:
        loads.append(folder)
        return load(folder, **how)

    monkeypatch.setattr("orchestrator.models.borrowed.load", noted)
    monkeypatch.setattr("orchestrator.models.borrowed._kept", {})
    asked = [
        recipe("lora", evaluate={"examples": 12}, task=task) for task in ("demo", {"name": "mmlu", "data": str(rows)})
    ]
    ready = [prepare(one) for one in asked]
    steps = [evaluate_step(one, found, "test") for one, found in zip(asked, ready, strict=True)]
    adapter = materialise(finetune_step(asked[0], ready[0]), Store(tmp_path))
    borrowed._kept.clear()
    loads.clear()
    tokenizer = load_tokenizer(ready[0].student.folder)
    found = []
    with loaded(ready[0].student.folder, adapter, dtype="float32") as engine:
        for step in steps:
            kept_rows, config = materialise(step.inputs["rows"], Store(tmp_path)), step.config
            folder = ready[0].student.folder
            asks = questions_of(kept_rows, config["template"], folder, config["metric"], config["choices"])
            ends = stops(config["template"], tokenizer)
            told, losses = put(engine, asks, ends, tmp_path / f"{step.fingerprint}.jsonl")
            found.append((judged(asks.items, told, losses, asks.metric), losses))
    assert loads == [ready[0].student.folder]
    for step, (scored, losses) in zip(steps, found, strict=True):
        (tmp_path / step.fingerprint).mkdir()
        given = {**step.config, **step.where, "rows": materialise(step.inputs["rows"], Store(tmp_path))}
        partial = tmp_path / f"{step.fingerprint}.partial"
        partial.mkdir()
        evaluate(tmp_path / step.fingerprint, **given, adapter=adapter, partial=partial)
        lines = kept(tmp_path / step.fingerprint / "examples.jsonl")
        assert [row["output"] for row in lines] == [row.output for row in scored]
        assert [row["loss"] for row in lines] == losses
    assert {row.answer for row in found[1][0]} <= set("ABCD") and {row.answer for row in found[0][0]} - set("ABCD")
