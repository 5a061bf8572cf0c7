"""Every recipe that the repository holds is one that the product takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transport.run import settled, summary

from orchestrator.recipe import Sweep
from orchestrator.sweep.cells import cells_of
from orchestrator.sweep.groups import fine_tunings
from orchestrator.sweep.presets import complete

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_expands_within_its_own_limit(path: Path) -> None:
    sweep = Sweep.model_validate(complete(yaml.safe_load(path.read_text())))
    cells = cells_of(sweep)
    assert sweep.baseline in {cell.label for cell in cells}
    assert fine_tunings(sweep, cells) <= sweep.max_trials


def test_there_are_some() -> None:
    assert len(FILES) >= 3


def test_a_way_is_above_all_random_maps_or_not() -> None:
    """What experiments/transport counts, by hand: won, won and above every map, and a task whose teacher fails."""

    def told(*, other: float, passed: bool = True) -> dict[str, Any]:
        means = {"theseus": 0.9, "theseus_random_map": 0.5, "ridge_random_map": other}
        against = ("lora", "pissa", "theseus_random_map")
        compared = [{"arm": "theseus", "against": rival, "outcome": "better"} for rival in against]
        rows = [{"arm": arm, "mean": mean} for arm, mean in means.items()]
        return {
            "rows": rows,
            "gate": {"answer": "knows it" if passed else "doesn't"},
            "verdict": {"comparisons": compared},
        }

    kept = {file.stem: json.loads(file.read_text()) for file in (ROOT / "experiments/transport/results").glob("*.json")}
    assert kept and all(
        len(summary({name: one}).splitlines()) == 15 for name, one in kept.items() if name.count("-") == 1
    )
    found = {"demo-a": told(other=0.4), "demo-b": told(other=0.95), "demo-c": told(other=0.4, passed=False)}
    assert summary(found).splitlines()[-1] == "| theseus | 2 of 2 (1) |"


def test_a_task_is_spared_where_it_can_decide_nothing_any_more() -> None:
    won = [
        {"arm": "theseus", "against": rival, "outcome": "better"} for rival in ("lora", "pissa", "theseus_random_map")
    ]
    better, lost = ({"verdict": {"comparisons": compared}} for compared in (won, won[:2]))
    for found, spared in (([], False), ([lost], False), ([lost, better], False), ([lost, lost], True)):
        named = {f"demo-{place}-again": told for place, told in enumerate(found)} | {
            "wide-a-again": lost,
            "demo-a": lost,
        }
        assert settled("demo-ordered-again", named) is spared
        assert not settled("demo-ordered", named)
