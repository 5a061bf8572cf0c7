"""What several trainings of a sweep come to when their adapters answer together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.models.composed import Composition, write
from orchestrator.pipeline import evaluate_step, finetune_step
from orchestrator.prepare.ready import Ready
from orchestrator.recipe import Recipe
from orchestrator.step import Step


def compose(folder: Path, *, by: Composition, every: int, **adapters: Path) -> dict[str, Any]:
    """Write the composition of some trainings' adapters, in the order of their names."""
    write(folder, [adapters[name] for name in sorted(adapters)], by=by, every=every)
    return {"adapters": len(adapters)}


def composed_step(recipes: Sequence[Recipe], ready: Ready, by: Composition, every: int) -> Step:
    """The score of a composition on the test split; each adapter as its own recipe trains it."""
    trained = {f"adapter_{place}": finetune_step(recipe, ready) for place, recipe in enumerate(recipes)}
    step = Step("compose", compose, {"by": by, "every": every}, trained, {}, {})
    return evaluate_step(recipes[0], ready, "test", adapter=step)
