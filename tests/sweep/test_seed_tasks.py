"""A teacher that is measured by other tasks' seed examples: which rows each trial is measured by, and its partners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import write

from orchestrator import pipeline
from orchestrator.errors import UserError
from orchestrator.prepare.ready import prepare
from orchestrator.prepare.rows import find_beside, seeds_of
from orchestrator.recipe import Sweep, TaskChoice
from orchestrator.sweep.cells import cells_of
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan
from orchestrator.verdict.estimates import Result, leaderboard
from orchestrator.verdict.words import ROOM, room_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder a task, of few and short rows."""
    for task, answer in (("mmlu", "B"), ("gsm8k", "So the answer is 3.")):
        (tmp_path / task).mkdir()
        for split, first in (("train", 0), ("test", 100)):
            turns = [(f"about {task}.\n\nrow {number}\nAnswer:", answer) for number in range(first, first + 60)]
            write(tmp_path / task / f"{split}.jsonl", [
                {"id": f"{task}{split}{number}", "answer": said,
                 "messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": said}]}
                for number, (ask, said) in enumerate(turns)
            ])  # fmt: skip
    return tmp_path


def sweep(folder: Path, **more: Any) -> Sweep:
    fields: dict[str, Any] = {
        "recipe": {"teacher": "demo-teacher", "task": {"name": "mmlu", "data": str(folder)}},
        "axes": {"arm": ["lora", "transfer"], "rank": [4], "measure.seeds": ["mmlu", "gsm8k"]},
    }
    return Sweep.model_validate(complete(fields | more))


def test_each_trial_is_measured_by_the_seeds_that_it_names(folder: Path, demo_models: dict[str, Path]) -> None:
    """Against the files: training rows of that task, in its own form; plain LoRA is one row, and trains on one task."""
    plan = Plan.of(sweep(folder))
    rows = [cell for cell in plan.cells if cell.who == "student"]
    assert [(cell.label, cell.recipe.measure.seeds) for cell in rows] == [
        ("lora", None), ("transfer", "mmlu"), ("transfer", "gsm8k"),
    ]  # fmt: skip
    for cell in rows[1:]:
        name = cell.recipe.measure.seeds
        step = pipeline.measure_step(cell.recipe, plan.ready).inputs["seeds"]
        found = step.where["rows"]
        known = {row["id"] for row in map(json.loads, (folder / name / "train.jsonl").read_text().splitlines())}
        assert len(found) == 32 and {row["id"] for row in found} <= known
        assert {row["messages"][-1]["content"] for row in found} == {"B" if name == "mmlu" else "So the answer is 3."}
    trained = {pipeline.finetune_step(cell.recipe, plan.ready).inputs["rows"].fingerprint for cell in rows}
    assert len(trained) == 1


def test_only_names_of_tasks_are_an_axis(folder: Path) -> None:
    with pytest.raises(UserError, match=r"axes: measure.seeds is no axis of a sweep; .*--seed-tasks"):
        cells_of(sweep(folder, axes={"arm": ["lora", "transfer"], "measure.seeds": ["mmlu", "own.jsonl"]}))


def test_a_row_of_other_seeds_is_held_against_the_one_plain_lora() -> None:
    """What the axis means nothing to is each row's partner; a control is that of the same seeds."""
    draw = np.random.default_rng(0)

    def row(arm: str, seeds: str | None) -> Result:
        other = {"measure.seeds": seeds} if seeds else {}
        return Result(
            arm, "sensitivity" if seeds else None, None, 4, draw.random((6, 20)), tuple(range(6)), other=other
        )

    rows = [row("lora", None), *(row(arm, seeds) for arm in ("transfer", "spectrum_control") for seeds in ("a", "b"))]
    scores = {(one.arm, one.other.get("measure.seeds")): one.scores for one in rows}
    for line in leaderboard(rows, "lora"):
        seeds = line.get("other", {}).get("measure.seeds")
        if line["arm"] == "lora":
            assert line["delta"] is None
            continue
        own = scores[line["arm"], seeds]
        assert line["delta"] == pytest.approx((own - scores["lora", None]).mean())
        if line["arm"] == "transfer":
            assert line["control_delta"] == pytest.approx((own - scores["spectrum_control", seeds]).mean())


@pytest.mark.parametrize("layout", ["a folder a task", "the task's own folder"])
def test_each_tasks_rows_are_found_near_those_that_are_trained_on(layout: str, folder: Path) -> None:
    """Whether --data names the folder of them all or the one of the task itself: no hub is asked for any of them."""
    data = folder if layout == "a folder a task" else folder / "mmlu"
    recipe = sweep(folder).recipe
    recipe = recipe.model_copy(update={"task": TaskChoice(name="mmlu", data=str(data))})
    for name in ("mmlu", "gsm8k"):
        assert {row.id.rstrip("0123456789") for row in seeds_of(name, recipe)} == {f"{name}train"}
        _, rows = find_beside(TaskChoice(name=name), recipe.task)
        assert {row.id.rstrip("0123456789") for row in rows} == {f"{name}test"}
    renamed = folder / "mine"
    (folder / "mmlu").rename(renamed)
    own = recipe.model_copy(update={"task": TaskChoice(name="mmlu", data=str(renamed))})
    assert {row.id.rstrip("0123456789") for row in seeds_of("mmlu", own)} == {"mmlutrain"}


def test_questions_beside_that_have_no_room_are_told(tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """Counted for each task, under a name that no split has; where none has room the task is refused."""
    chats = [{"messages": [{"role": "user", "content": f"Backwards: {'ab' * (1 if at % 5 else 300)}{at}"},
                           {"role": "assistant", "content": "ba"}]} for at in range(50)]  # fmt: skip
    write(tmp_path / "test.jsonl", chats)
    recipe = Sweep.model_validate(complete({})).recipe
    ready = prepare(recipe, beside=[TaskChoice(name=str(tmp_path / "test.jsonl"))])
    fit = ready.fit["test's"]
    asked = [row.messages[0].content for row in ready.beside["test"][1]]
    assert fit == {"rows": 10, "not_asked": sum(len(text) > 500 for text in asked)} and fit["not_asked"]
    assert ready.fit["test"]["not_asked"] == 0
    assert room_lines({"fit": ready.fit}) == [f"Of 10 test's rows {fit['not_asked']} {ROOM['not_asked']}."]
    write(tmp_path / "test.jsonl", [chats[at // 5 * 5] | {"id": f"r{at}"} for at in range(50)])
    with pytest.raises(UserError, match="no question of test fits"):
        prepare(recipe, beside=[TaskChoice(name=str(tmp_path / "test.jsonl"))])
