"""A base that is loaded once and wears one adapter after another is the stock model each time, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import recipe

from orchestrator import pipeline
from orchestrator.models import borrowed
from orchestrator.models.adapters import wearing
from orchestrator.models.loading import load
from orchestrator.prepare.ready import prepare
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.student.finetune import _stock

IDS = torch.tensor([[5, 9, 14, 3, 60, 41]])


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    borrowed._kept.clear()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the models that are loaded, as they are."""
    found: list[str] = []

    def noted(folder: str, **how: Any) -> Any:
        found.append(folder)
        return load(folder, **how)

    monkeypatch.setattr("orchestrator.models.borrowed.load", noted)
    return found


def test_trials_and_tasks_of_one_worker_load_its_student_once(
    loads: list[str], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """Two arms are trained, and each is scored on two sets of rows; what comes of it is what fresh models give."""
    together, apart = Store(tmp_path / "together"), Store(tmp_path / "apart")
    for arm in ("pissa", "transfer", "lora_ga"):
        asked = recipe(arm=arm, evaluate={"examples": 12})
        ready = prepare(asked)
        for split in ("validation", "test"):
            step = pipeline.trial(asked, ready, split)  # type: ignore[arg-type]
            kept = materialise(step, together)
            loaded, others = len(loads), dict(borrowed._kept)
            borrowed._kept.clear()
            fresh = materialise(step, apart)
            borrowed._kept.clear()
            borrowed._kept.update(others)
            del loads[loaded:]
            assert (kept / "examples.jsonl").read_bytes() == (fresh / "examples.jsonl").read_bytes()
    assert loads == [ready.student.folder]
    (model,) = borrowed._kept.values()
    for (name, own), (other, theirs) in zip(
        model.state_dict().items(), load(ready.student.folder).state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(own, theirs)


def test_an_adapter_is_seen_and_leaves_nothing(demo_models: dict[str, Path], tmp_path: Path) -> None:
    asked = recipe(arm="lora")
    ready = prepare(asked)
    adapter = materialise(pipeline.finetune_step(asked, ready), Store(tmp_path))
    borrowed._kept.clear()
    seen = []
    for folder in (None, adapter, None):
        with borrowed.borrowed(ready.student.folder, dtype="float32", device="cpu") as base:
            with wearing(base, folder) as network, torch.no_grad():
                seen.append(network(IDS).logits)
    assert torch.equal(seen[0], seen[2])
    assert float((seen[1] - seen[0]).abs().max()) > 0.1
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == asked.rank


def test_a_training_with_a_model_of_its_own_has_the_room_of_the_kept_one(
    loads: list[str], demo_models: dict[str, Path]
) -> None:
    folder = str(demo_models["demo-student"])
    with borrowed.borrowed(folder, dtype="float32", device="cpu"):
        pass
    assert len(borrowed._kept) == 1
    with _stock(folder, "float32", sharded=False, own=True):
        assert not borrowed._kept


def test_a_model_is_not_kept_after_an_error(loads: list[str], demo_models: dict[str, Path]) -> None:
    folder = str(demo_models["demo-student"])
    with pytest.raises(ZeroDivisionError), borrowed.borrowed(folder, dtype="float32", device="cpu"):
        raise ZeroDivisionError
    with borrowed.borrowed(folder, dtype="float32", device="cpu"):
        pass
    assert loads == [folder, folder]
