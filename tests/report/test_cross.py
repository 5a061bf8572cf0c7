"""Seeds' task by scored task, against means of differences by hand."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.report.cross import crossed
from orchestrator.report.drawn import drawn
from orchestrator.report.evidence import Evidence, cross_heats
from orchestrator.verdict.estimates import Beside, Result, interval

SEEDS = tuple(range(6))


def row(arm: str, seeds: str | None, draw: np.random.Generator) -> Result:
    other = {"measure.seeds": seeds} if seeds else {}
    beside = {"mmlu": Beside(SEEDS, draw.random((6, 30)))}
    return Result(arm, None, None, 4, draw.random((6, 20)), SEEDS, other=other, beside=beside)


def test_every_cell_is_a_difference_from_the_baseline_there() -> None:
    draw = np.random.default_rng(0)
    plain = row("lora", None, draw)
    rows = [plain, *(row(arm, seeds, draw) for arm in ("transfer", "spectrum_control") for seeds in ("gsm8k", "mmlu"))]
    cells = crossed(rows, "lora", "gsm8k")
    assert len(cells) == 8
    for cell in cells:
        (own,) = [one for one in rows if (one.arm, one.other.get("measure.seeds")) == (cell.arm, cell.seeds)]
        ours, theirs = ((one.scores if cell.task == "gsm8k" else one.beside["mmlu"].scores) for one in (own, plain))
        assert [cell.delta, *cell.ci95] == pytest.approx(interval(ours - theirs))
    first, second = cross_heats(cells)
    assert (first.arm, second.arm) == ("transfer", "spectrum_control")
    assert (first.columns, first.strategies) == (["gsm8k", "mmlu"], ["seeds of gsm8k", "seeds of mmlu"])
    assert first.cells[1, 0] == pytest.approx(
        next(one.delta for one in cells if (one.arm, one.seeds, one.task) == ("transfer", "mmlu", "gsm8k"))
    )
    (picture,) = drawn(Evidence([], [], [], cross=cells))
    assert picture.name == "seeds-by-task"


def test_without_such_an_axis_there_is_none() -> None:
    draw = np.random.default_rng(1)
    assert crossed([row("lora", None, draw), row("transfer", None, draw)], "lora", "gsm8k") == []
