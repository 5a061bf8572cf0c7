"""A grid in which no arm has more tries than another: whoever has fewer rows has more learning rates."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import pytest

from orchestrator.recipe import Sweep
from orchestrator.sweep.cells import cells_of
from orchestrator.sweep.groups import finer, groups_of, tries_of
from orchestrator.sweep.presets import complete


def sweep(**document: Any) -> Sweep:
    return Sweep.model_validate(complete(document))


AXES = {
    "layers": ["sensitivity", "last", "0,1,2,3"],
    "rank": [4, 8],
    "structure": ["window", "row_column"],
    "modules": ["all", "ffn"],
    "measure.metric": ["taylor", "fisher"],
}
SEVERAL = ["lora", "pissa", {"kind": "distil", "rows": "all"}, {"kind": "distil", "temperature": 1.0}, "random_window"]


@pytest.mark.parametrize("lr", [[1e-3, 1e-1], [1e-4, 3e-4, 1e-3]])
@pytest.mark.parametrize("varied", [some for count in range(4) for some in combinations(AXES, count)], ids=", ".join)
def test_every_arm_of_a_grid_has_as_many_tries(varied: tuple[str, ...], lr: list[float]) -> None:
    """Whatever multiplies the rows of some arms and not of others; the teacher, of which nothing is claimed, aside."""
    axes = {name: AXES[name] for name in varied}
    asked = sweep(axes={"arm": [*SEVERAL, "transfer", "spectrum_control"], **axes}, lr=lr, tuned_teacher=True)
    cells = cells_of(asked)
    tries = tries_of(asked, cells)
    assert tries.pop("teacher_tuned") == len(lr)
    rows = Counter(cell.label for cell in cells)
    assert len(set(tries.values())) == 1 and tries["lora"] >= max(rows.values()) * len(lr)
    assert tries["lora"] < max(rows.values()) * len(lr) + 2 * max(rows.values())  # no more than it takes
    for group in groups_of(asked, cells):
        assert set(lr) <= set(group.rates) and (group.rates[0], group.rates[-1]) == (min(lr), max(lr))
        assert len(set(group.rates)) == len(group.rates) == group.searched
    counted = sum(group.searched for group in groups_of(asked, cells))
    assert counted == sum(tries.values()) + len(lr)


@pytest.mark.parametrize("document", [{}, {"recipe": {"teacher": "llama2-70b"}}])
def test_arms_with_as_many_rows_have_the_rates_that_were_given(document: dict[str, Any]) -> None:
    """The demo's six and the default's four; a teacher whose update is carried has its own rate."""
    asked = Sweep.model_validate(complete(document))
    groups = groups_of(asked, cells_of(asked))
    assert {group.rates for group in groups if group.searched} == {tuple(sorted(asked.lr))}
    own = {group.rates for group in groups if not group.searched}
    assert own == ({(asked.recipe.update.lr,)} if asked.recipe.teacher == "demo-teacher" else set())


def test_finer_rates_divide_the_widest_gaps_evenly() -> None:
    assert finer([1e-3, 3e-4, 1e-4], 3) == [1e-4, 3e-4, 1e-3]
    assert finer([1e-4, 3e-4, 1e-3], 6) == [1e-4, 0.000173, 3e-4, 0.000448, 0.000669, 1e-3]
    assert finer([1e-3, 1e-1], 3) == [1e-3, 1e-2, 1e-1]
    many = finer([1e-4, 1e-3], 100)
    gaps = [math.log(after / before) for before, after in pairwise(many)]
    assert len(many) == 100 and max(gaps) < 2 * min(gaps)  # to three digits
    close = finer([1e-3, 1.0001e-3], 9)
    assert len(set(close)) == 9 and (close[0], close[-1]) == (1e-3, 1.0001e-3)
