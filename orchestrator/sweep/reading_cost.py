"""Forward passes that arms ask for before they are trained: over the texts of maps, and over all training rows.

Maps themselves aren't counted: `python -m benchmarks carrying` measures those of one layer of a 70B teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce

from orchestrator.recipe import Recipe
from orchestrator.sweep.anatomy import Anatomy
from orchestrator.sweep.cells import Cell
from orchestrator.sweep.costs import measure_cost
from orchestrator.sweep.groups import labelled
from orchestrator.sweep.hardware import Cost, Hardware
from orchestrator.sweep.lengths import Lengths, Row
from orchestrator.teacher.scale import LARGEST_TILE, Scale
from orchestrator.transfer.arms.carried import Carried
from orchestrator.transfer.metrics import Wanda


def forward_passes(
    recipe: Recipe, cells: Sequence[Cell], teacher: Anatomy, student: Anatomy, held: Hardware, lengths: Lengths
) -> dict[str, tuple[int, Callable[[int], Cost]]]:
    """By step how often it is done, and what it takes on so many ranks; a step that no arm asks for isn't there.

    "read": one model after the other over `carry.examples` rows. "ask": the teacher over all training rows, for its
    predictions, or with its update and without. Rows are as the student's tokenizer cuts them.
    """
    found: dict[str, tuple[int, Callable[[int], Cost]]] = {}
    arms = [cell.recipe.arm for cell in cells]
    if any(isinstance(arm, Carried) and arm.reads == "texts" for arm in arms):
        texts = lengths.train[: recipe.carry.examples]
        found["read"] = 1, partial(_forward, [teacher, student], recipe, texts, held, lengths)
    excess = {cell.recipe.update for cell in cells if "excess" in cell.recipe.arm.needs}
    if asked := sum(rows == "all" for rows, *_ in labelled(cells)) + 2 * len(excess):
        found["ask"] = asked, partial(_forward, [teacher], recipe, lengths.train, held, lengths)
    return found


def _forward(
    models: Sequence[Anatomy], recipe: Recipe, rows: tuple[Row, ...], held: Hardware, lengths: Lengths, ranks: int
) -> Cost:
    forward = recipe.model_copy(update={"measure": recipe.measure.model_copy(update={"metric": Wanda()})})
    own = replace(lengths, seed=rows)
    return reduce(Cost.then, (measure_cost(model, forward, Scale(LARGEST_TILE), ranks, held, own) for model in models))
