"""How often gradients were clipped, from the steps' own norms to the leaderboard's line."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from trainings import recipe

from orchestrator.pipeline import trial
from orchestrator.prepare.ready import prepare
from orchestrator.report.record import results
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.verdict.estimates import leaderboard
from orchestrator.verdict.words import clipped_line

LENGTH = {"examples": 48, "epochs": 2, "batch_size": 16}
NORMS = (0.0, 1.0, 10.0)


@pytest.fixture(scope="module")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    """A record of two trainings at each norm to clip at, and of the student as it is."""
    store, rows = Store(tmp_path_factory.mktemp("store")), []
    for most in NORMS:
        some = [
            recipe("lora", seed=seed, lr=0.02, finetune=LENGTH | {"max_grad_norm": most}, evaluate={"examples": 4})
            for seed in (0, 1)
        ]
        steps = [trial(one, prepare(one), "test") for one in some]
        for step in steps:
            materialise(step, store)
        rows.append(
            {
                "label": "lora", "adapted": True, "recipe": some[0].model_dump(mode="json"), "lr_at_edge": False,
                "validation": None, "trials": [step.fingerprint for step in steps],
            }
        )  # fmt: skip
    return store, {"sweep": {"axes": {"finetune.max_grad_norm": NORMS}}, "rows": rows}


def test_a_rows_share_is_that_of_its_trainings_steps(swept: tuple[Store, dict[str, Any]]) -> None:
    store, record = swept
    rows = {row["other"]["finetune.max_grad_norm"]: row for row in leaderboard(results(record, store), "lora")}
    for most, row in zip(NORMS, record["rows"], strict=True):
        shares, medians = [], []
        for key in row["trials"]:
            lineage = json.loads((store.root / "evaluate" / key / "manifest.json").read_text())["lineage"]
            folder = store.root / "finetune" / lineage["inputs"]["adapter"]
            assert lineage["inputs"]["adapter"] != key
            history = json.loads((folder / "history.json").read_text())
            norms = [norm for point in history for norm in point["grad_norms"]]
            assert len(norms) == 6
            shares.append(sum(norm > most for norm in norms) / 6 if most else 0.0)
            medians.append(statistics.median(norms))
        assert rows[most]["clipped"] == pytest.approx(statistics.mean(shares))
        assert rows[most]["grad_norm"] == pytest.approx(statistics.mean(medians))
    assert rows[0.0]["clipped"] == 0.0
    assert rows[1.0]["clipped"] == 1.0


def test_a_training_that_is_gone_leaves_none(swept: tuple[Store, dict[str, Any]], tmp_path: Path) -> None:
    store, record = swept
    (tmp_path / "evaluate").symlink_to(store.root / "evaluate")
    rows = leaderboard(results(record, Store(tmp_path)), "lora")
    assert [(row["clipped"], row["grad_norm"]) for row in rows] == [(None, None)] * 3


def test_the_line_says_which_arms_steps() -> None:
    def row(arm: str, clipped: float | None) -> dict[str, Any]:
        return {"arm": arm, "clipped": clipped}

    rows = [row("lora", 0.984), row("transfer", 0.2), row("lora", 1.0), row("student", None), row("pissa", 0.996)]
    told = "Steps whose gradient was clipped (finetune.max_grad_norm): lora 98 to 100 %, transfer 20 %, pissa 100 %."
    assert clipped_line(rows) == [told]
    assert clipped_line([row("lora", 0.5), row("transfer", 0.2)]) == []
    assert clipped_line([row("student", None)]) == []
    many = [row(f"arm{place}", 0.9) for place in range(12)]
    assert "arm0 90 %, arm1 90 %" in clipped_line(many)[0]
    assert clipped_line([*many, row("lora", 0.44)])[0].endswith(": more than half in 12 arms, lora 44 %.")
    assert clipped_line([*many, row("lora", 0.99)])[0].endswith(": more than half in 13 arms.")
    rarely = [row(f"arm{place}", 0.1) for place in range(12)]
    assert clipped_line([*rarely, row("lora", 0.9)])[0].endswith(": at most half in 12 arms, lora 90 %.")
