"""From YAML to cells: what multiplies, what doesn't, and what is refused before anything runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from trainings import shared_of

from orchestrator.errors import UserError
from orchestrator.recipe import Recipe, Sweep
from orchestrator.store import Store
from orchestrator.sweep.cells import cells_of, expand
from orchestrator.sweep.groups import fine_tunings
from orchestrator.sweep.labbook import sweep_record, trial_record
from orchestrator.sweep.plan import counts
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan


def sweep(**document: Any) -> Sweep:
    return Sweep.model_validate(complete(document))


def test_axes_that_mean_nothing_for_an_arm_do_not_multiply() -> None:
    axes = {
        "arm": ["lora", "pissa", "transfer", "spectrum_control"],
        "rank": [4, 8],
        "layers": ["sensitivity", "first", "0,1,2,3"],
        "structure": ["window", "row_column"],
    }
    recipes = expand(sweep(axes=axes))
    count = {arm: sum(recipe.arm.kind == arm for recipe in recipes) for arm in axes["arm"]}
    assert count == {"lora": 2, "pissa": 2, "transfer": 2 * 3 * 2, "spectrum_control": 2 * 3 * 2}
    assert all(recipe.layers is None and recipe.modules is None for recipe in recipes if recipe.arm.kind == "lora")


def test_any_field_can_be_an_axis() -> None:
    recipes = expand(
        sweep(axes={"arm": ["lora"], "rank": [4], "finetune.epochs": [1, 2], "modules": ["ffn", "attention"]})
    )
    assert [recipe.finetune.epochs for recipe in recipes] == [1, 2]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"arm": ["lorra"]}, r"arm: 'lorra' is not known; known: lora, pissa, olora"),
        ({"rnak": [4]}, r"rnak: there is no such field"),
        ({"finetune.epoch": [4]}, r"finetune.epoch: there is no such field"),
        ({"rank": [4], "rank.deep": [4]}, r"axes: rank and rank.deep collide, since one holds the other"),
        ({"task.name.deep": [4]}, r"axes: task.name.deep is no axis"),
        ({"stored_rank.deep": [4]}, r"'stored_rank.deep' is no field"),
        ({"rank": []}, r"axes: rank has no values, which makes 0 trials"),
        ({"rank": [*range(1, 200)], "finetune.epochs": [*range(1, 200)]}, r"axes: 39,601 combinations, more than"),
        ({"rank": [0]}, r"rank: 0: input should be greater than or equal to 1"),
        ({"layers": ["sensitivty"]}, r"layers: 'sensitivty' is not known; known: sensitivity, random"),
        ({"structure": ["block"]}, r"structure: 'block' is not known"),
        ({"lr": [1e-3, 1e-2]}, r"axes: lr is no axis of a sweep; give the grid as `lr` \(--lr\)"),
        ({"seed": [1, 2]}, r"axes: seed is no axis of a sweep; a sweep runs the seeds"),
        ({"teacher": ["a", "b"]}, r"axes: teacher is no axis of a sweep; run one sweep a teacher"),
        ({"modules": ["atention"]}, r"modules.0: 'atention': input should be 'attention', 'ffn' or 'embedding'"),
    ],
)
def test_what_is_wrong_is_named(axes: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(sweep(axes={"arm": ["transfer"], **axes}))


def test_the_smallest_teacher_needs_a_student() -> None:
    with pytest.raises(UserError, match=r"student: 'llama2-7b' has no natural student; name one with --student"):
        complete({"recipe": {"teacher": "llama2-7b"}})


def test_a_teachers_name_alone_is_a_complete_sweep() -> None:
    asked = sweep(recipe={"teacher": "llama2-70b"})
    assert asked.recipe.student == "llama2-7b"
    assert asked.recipe.task.name == "gsm8k"
    assert asked.tuned_teacher is False
    assert fine_tunings(asked, cells_of(asked)) == 4 * (3 + 6) <= asked.max_trials


def test_what_is_said_wins_over_the_demos_protocol() -> None:
    asked = sweep(recipe={"task": {"name": "gsm8k", "data": "rows"}}, axes={"rank": [2]})
    assert asked.recipe.task.data == "rows"
    assert asked.axes["rank"] == (2,)
    assert asked.recipe.student == "demo-student"


def test_a_fixed_field_is_kept_and_is_no_axis() -> None:
    fixed = {"layers": "last", "structure": "random", "modules": "attention", "rank": 2}
    cells = expand(sweep(recipe=fixed))
    transfer = [cell for cell in cells if cell.arm.kind == "transfer"]
    assert [cell.layers.kind for cell in transfer] == ["last"]  # type: ignore[union-attr]
    assert [(cell.structure.kind, cell.modules, cell.rank) for cell in transfer] == [("random", ("attention",), 2)]  # type: ignore[union-attr]
    assert sweep(recipe={"lr": 5e-5}).lr == (5e-5,)
    with pytest.raises(UserError, match=r"seed: 3: a sweep runs the seeds 0 to"):
        expand(sweep(recipe={"seed": 3}))


@pytest.mark.parametrize("document", [{"recipe": "demo"}, {"axes": [1]}, {"recipe": {"teacher": ["a"]}}])
def test_a_document_of_the_wrong_shape_is_told(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is no (mapping|name)"):
        sweep(**document)


def test_recipes_are_values() -> None:
    recipe = Recipe(teacher="a", student="b")
    assert recipe == Recipe.model_validate(recipe.model_dump(mode="json", exclude_none=True))
    assert hash(recipe) == hash(Recipe(teacher="a", student="b"))
    assert Recipe(teacher="a", student="b", arm="transfer", modules="all").modules == ("attention", "ffn", "embedding")


def test_the_demo_plan_shares_its_steps(demo_models: dict[str, Any]) -> None:
    plan = Plan.of(sweep())
    counted = Counter(step.name for step in shared_of(plan))
    cut = len({str(one.recipe.layers) for one in plan.cells}) - 1
    carried = {"inputs": 2, "carry": 1}  # both models' inputs, and the update in the student's channels
    assert counted == {"measure": 1, "extract": cut, **carried, "evaluate": 1}  # and the teacher with its update
    assert plan.trials >= 24


def test_the_tuned_teacher_is_a_plain_lora_whatever_the_baseline(demo_models: dict[str, Any]) -> None:
    plan = Plan.of(sweep(baseline="transfer"))
    (teacher,) = [cell for cell in plan.cells if cell.who == "teacher"]
    assert (teacher.recipe.arm.kind, teacher.recipe.rank) == ("lora", 8)


@pytest.mark.parametrize("known", [True, False])
def test_a_trials_rows_are_those_of_its_sweep(demo_models: dict[str, Any], tmp_path: Path, known: bool) -> None:
    """By name, digest and source, whether the task is known or a file, and however few rows are scored."""
    from orchestrator.tasks.demo import rows

    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in rows("train")[:60]))
    name = "demo" if known else str(file)
    asked = sweep(recipe={"task": {"name": name}, "evaluate": {"examples": 5}}, axes={"arm": ["lora"]})
    plan, store = Plan.of(asked), Store(tmp_path / "store")
    parent = sweep_record("key", "a sweep", {}, counts(asked, 80e9), plan.ready, asked.recipe)
    trial = plan.references[0].trial(plan.ready, "test", lr=1, seed=0, stage="reference")
    with store.writing("evaluate", trial.step.fingerprint, {"seconds": 1.0}) as folder:
        (folder / "metrics.json").write_text(json.dumps({"score": 0.5, "loss": 1.0}))
        (folder / "examples.jsonl").write_text("")
    (own,) = trial_record(store, "key", trial.label, trial.params, trial.step).datasets
    assert own in parent.datasets
    assert (own["name"], own["source"]) == (("demo test", "generated") if known else ("mine test", str(file)))


def test_a_sweep_on_other_rows_is_another_sweep(demo_models: dict[str, Any], tmp_path: Path) -> None:
    """The validation rows choose the learning rate, so they are part of what a sweep is."""
    from orchestrator.tasks.demo import rows

    keys = []
    for first in (0, 1):
        folder = tmp_path / str(first)
        folder.mkdir()
        for split in ("train", "validation", "test"):
            lines = rows(split)[first if split == "validation" else 0 :]  # type: ignore[arg-type]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        task = {"name": "demo", "data": str(folder)}
        keys.append(Plan.of(sweep(recipe={"task": task}, axes={"arm": ["lora"]})).key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"axes": {"rank": [40]}}, r"rank: 40 is larger than the student's k matrix, 32 x 64; take at most 32"),
        ({"axes": {"arm": ["transfer"]}}, r"baseline: 'lora' is not among the arms transfer"),
        ({"axes": {"layers": ["0,1"]}}, r"layers: 0,1 given, but 4 of the teacher's 0..5 are needed"),
        (
            {"recipe": {"teacher": "demo-student", "student": "demo-teacher", "task": {"name": "demo"}}},
            r"student: 6 layers, the teacher has only 4",
        ),
        ({"recipe": {"task": {"name": "gms8k"}}}, r"task: 'gms8k' is not known; did you mean gsm8k"),
        ({"recipe": {"task": {"name": "gsm8k"}}}, r"task: the data set openai/gsm8k is not in the local cache"),
        ({"recipe": {"measure": {"granularity": 40}}}, r"measure.granularity: 40 doesn't divide 16"),
        (
            {"recipe": {"measure": {"granularity": 16}, "structure": "neuron"}},
            r"structure: neuron needs exact scores, and these are tiles of 16",
        ),
        ({"recipe": {"finetune": {"micro_batch_size": 7}}}, r"finetune.micro_batch_size: 7 doesn't divide the batch"),
        ({"recipe": {"task": {"template": "chat"}}}, r"no chat template; use --template plain"),
    ],
)
def test_a_sweep_that_can_not_be_is_refused(
    document: dict[str, Any], message: str, demo_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        Plan.of(sweep(**document))
