"""What reading texts with both models takes, which arms that carry an update ask for before they make their maps.

Maps themselves aren't counted: `python -m benchmarks carrying` measures those of one layer of a 70B teacher.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.recipe import Recipe
from orchestrator.sweep.anatomy import Anatomy
from orchestrator.sweep.costs import measure_cost
from orchestrator.sweep.hardware import Cost, Hardware
from orchestrator.sweep.lengths import Lengths
from orchestrator.teacher.scale import LARGEST_TILE, Scale
from orchestrator.transfer.metrics import Wanda


def reading_cost(
    teacher: Anatomy, student: Anatomy, recipe: Recipe, ranks: int, held: Hardware, lengths: Lengths
) -> Cost:
    """One model after the other, forward alone, over `carry.examples` training rows as the student's tokenizer cuts
    them."""
    forward = recipe.model_copy(update={"measure": recipe.measure.model_copy(update={"metric": Wanda()})})
    rows = replace(lengths, seed=lengths.train[: recipe.carry.examples])
    one, other = (measure_cost(model, forward, Scale(LARGEST_TILE), ranks, held, rows) for model in (teacher, student))
    return one.then(other)
