"""What "auto" means is settled once, before anything runs, and holds on whatever machine the sweep is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.intent import refuse_another
from orchestrator.errors import UserError
from orchestrator.prepare import ready as prepare
from orchestrator.recipe import Sweep
from orchestrator.step import Step
from orchestrator.sweep.cells import asked_flat
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan

SHORT = {"examples": 36, "epochs": 1, "batch_size": 36, "dtype": "auto"}


@pytest.fixture(scope="module")
def half(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's teacher in bfloat16."""
    return stored(demo_models["demo-teacher"], torch.bfloat16, tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="module")
def wide(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's student in float32."""
    return stored(demo_models["demo-student"], torch.float32, tmp_path_factory.mktemp("models") / "student")


def stored(model: Path, dtype: torch.dtype, folder: Path) -> Path:
    """A checkpoint in another type."""
    AutoModelForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def sweep(teacher: Path, student: Path, **fields: Any) -> Sweep:
    recipe = {"teacher": str(teacher), "student": str(student), "task": "demo", "finetune": SHORT}
    axes = {"arm": ["lora", "transfer", "distil"], "rank": [4], **fields}
    return Sweep.model_validate(complete({"recipe": recipe, "axes": axes, "lr": [1e-2], "tuned_teacher": True}))


def types(step: Step) -> set[str]:
    """Of a step and all that it builds on."""
    return {one.config["dtype"] for one in step.ancestors() if "dtype" in one.config}


@pytest.mark.parametrize("native", [True, False])
def test_no_step_and_no_record_says_auto(native: bool, half: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "workers_have_bfloat16", lambda: native)
    plan, narrow = Plan.of(sweep(half, wide)), "bfloat16" if native else "float32"
    assert plan.ready.dtypes == {"teacher": narrow, "student": "float32"}
    found = {}
    for cell in (*plan.cells, *plan.references):
        trial = cell.trial(plan.ready, "test", lr=1e-2, seed=0, stage="trial")
        found[cell.label] = types(trial.step)
        assert trial.params["measure.dtype"] == narrow
        assert trial.params["finetune.dtype"] == (narrow if cell.who == "teacher" else "float32")
    both = {narrow, "float32"}
    assert found == {
        "lora": {"float32"}, "transfer": both, "distil": both, "student": {"float32"},
        "teacher": {narrow}, "teacher_tuned": {narrow},
    }  # fmt: skip
    told = asked_flat(plan.sweep)
    assert (told["recipe.measure.dtype"], told["recipe.finetune.dtype"]) == (narrow, "float32")


def test_a_sweep_goes_on_in_the_types_in_which_it_was_begun(
    half: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is fast in another: what was written down is enough, and "auto" then means that."""
    asked = sweep(half, wide)
    monkeypatch.setattr(prepare, "workers_have_bfloat16", lambda: True)
    begun = Plan.of(asked)
    monkeypatch.setattr(prepare, "workers_have_bfloat16", lambda: False)
    assert Plan.of(begun.sweep).key == begun.key
    assert Plan.of(asked).key != begun.key
    refuse_another(begun.sweep, asked)
    other = asked.model_copy(update={"recipe": Plan.of(asked).sweep.recipe})
    with pytest.raises(UserError, match=r'recipe.measure.dtype: "bfloat16", now "float32"'):
        refuse_another(begun.sweep, other)


def test_an_axis_of_types_has_each_once(half: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "workers_have_bfloat16", lambda: False)
    plan = Plan.of(sweep(half, wide, **{"measure.dtype": ["auto", "float32", "float64"]}))
    assert plan.sweep.axes["measure.dtype"] == ("float32", "float64")
    measured = [cell.recipe.measure.dtype for cell in plan.cells if cell.label == "transfer"]
    assert measured == ["float32", "float64"]
