"""What a plan says of a teacher that is trained itself, and of texts that both models read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.intent import afford
from orchestrator.recipe import Sweep
from orchestrator.sweep.anatomy import Anatomy
from orchestrator.sweep.cells import cells_of
from orchestrator.sweep.groups import shared_by
from orchestrator.sweep.hardware import Hardware
from orchestrator.sweep.lengths import Lengths, Row
from orchestrator.sweep.plan import counts, forecast
from orchestrator.sweep.presets import complete

FOUR = 4e9


def sweep(**document: object) -> Sweep:
    return Sweep.model_validate(complete(document))


def test_a_teacher_that_is_its_own_student_takes_what_the_student_takes(demo_models: dict[str, Path]) -> None:
    """Its training at the same rank is a trial's to the byte, and happens once for the update that four arms carry."""
    both = dict.fromkeys(("teacher", "student"), str(demo_models["demo-teacher"]))
    recipe = {**both, "task": "demo", "rank": 16, "update": {"rank": 16, "lr": 3e-4}}
    here = Hardware(1, FOUR, cuda=False)
    arms = ["lora", "theseus", "ridge", "cross_lora", "titok"]
    carried = forecast(sweep(recipe=recipe, axes={"arm": arms}, lr=[3e-4], repeats=2), here)
    assert carried.steps["tune"] == carried.steps["finetune"]
    rows = carried.trials - 1  # the teacher's own training is one of them
    assert rows == 2 * (1 + 2 * 4)  # each brings its control along
    plain = forecast(sweep(recipe=recipe, axes={"arm": ["lora"]}, lr=[3e-4], repeats=rows), here)
    assert "tune" not in plain.steps and plain.trials == rows
    more = carried.steps["sweep"].seconds - plain.steps["sweep"].seconds
    once = [carried.steps[name].seconds for name in ("tune", "read", "teacher_score")]
    asked = 2 * carried.steps["ask"].seconds  # with the update and without, for TiTok's excess
    scales = 3 * carried.steps["scale"].seconds  # a way's serves its random map, too
    assert more == pytest.approx(sum(once) + asked + scales)


def test_a_teacher_that_trains_for_longer_takes_longer(demo_models: dict[str, Path]) -> None:
    models = {who: str(demo_models[f"demo-{who}"]) for who in ("teacher", "student")}
    once, thrice = (
        forecast(
            sweep(recipe={**models, "update": update}, axes={"arm": ["lora", "cross_lora"]}), Hardware(1, FOUR)
        ).steps
        for update in ({}, {"epochs": 9})
    )
    assert thrice["tune"].seconds == pytest.approx(3 * once["tune"].seconds)
    assert thrice["finetune"] == once["finetune"]
    axes = {"arm": ["lora", "cross_lora"], "update.epochs": [9, 3]}
    both = forecast(sweep(recipe=models, axes=axes), Hardware(1, FOUR)).steps
    assert both["tune"].seconds == pytest.approx(2 * once["tune"].seconds)


def test_a_teacher_that_is_only_scored_trains_for_its_own_epochs_too(demo_models: dict[str, Path]) -> None:
    """Whichever arms are beside it: those that take no update have none of its settings."""
    models = {who: str(demo_models[f"demo-{who}"]) for who in ("teacher", "student")}
    for arms in (["lora"], ["lora", "lora_equal"], ["lora_equal", "lora"], ["lora", "theseus"]):
        document = {"recipe": {**models, "update": {"epochs": 6}}, "axes": {"arm": arms}, "tuned_teacher": True}
        (teacher,) = (cell for cell in cells_of(sweep(**document)) if cell.trains_teacher)
        assert teacher.recipe.finetune.epochs == 6, arms


def test_a_scale_for_each_role_takes_so_many_more_passes(demo_models: dict[str, Path]) -> None:
    models = {who: str(demo_models[f"demo-{who}"]) for who in ("teacher", "student")}

    def seconds(*arms: str) -> float:
        asked = sweep(recipe=models, axes={"arm": ["lora", *arms]})
        return forecast(asked, Hardware(1, FOUR)).steps["scale"].seconds

    one, roles, both = seconds("theseus"), seconds("theseus_roles"), seconds("theseus", "theseus_roles")
    assert roles == pytest.approx(one * (7 + 3 * 9) / 7)
    assert both == pytest.approx((one + roles) / 2)


def test_an_update_is_carried_once_whatever_scales_are_tried() -> None:
    pair = {"teacher": "demo-teacher", "student": "demo-student", "task": "demo"}
    asked = sweep(recipe=pair, axes={"arm": ["lora", "theseus"], "carry.scales": [[0, 1], [1]]}, max_trials=200)
    told = shared_by(asked, cells_of(asked))
    assert (told["updates carried"], told["scales chosen"]) == (1, 2)


def test_texts_go_through_both_models_once(demo_models: dict[str, Path]) -> None:
    """Two FLOP a weight and token, of rows of one length; an arm that reads weights alone has none read."""
    models = {who: str(demo_models[f"demo-{who}"]) for who in ("teacher", "student")}
    recipe = {**models, "task": "demo", "carry": {"examples": 3}, "measure": {"metric": "taylor"}}
    row = Row(20, 10)
    lengths = Lengths((row,) * 2, (row,) * 8, (row,), (row,), 5, 0)
    here = Hardware(1, FOUR, cuda=False)
    read, unread = (
        forecast(sweep(recipe=recipe, axes={"arm": ["lora", arm]}), here, lengths) for arm in ("ridge", "cross_lora")
    )
    weights = sum(Anatomy.of(name, who).multiplied for who, name in models.items())
    assert read.steps["read"].seconds == pytest.approx(2 * weights * 3 * 20 / here.flops)
    assert "read" not in unread.steps and "tune" in unread.steps
    smaller, larger = (Anatomy.of(models[who], who) for who in ("student", "teacher"))
    assert read.steps["scale"].seconds == pytest.approx(7 * 2 * smaller.multiplied * 20 / here.flops)
    assert read.steps["read"].per_rank.weights_bytes == larger.parameters * larger.width


def test_a_teacher_too_large_to_be_trained_is_told_before_anything_is_fetched() -> None:
    """By one process on a GPU; by eight that hold a part each it fits."""
    asked = sweep(recipe={"teacher": "llama2-70b"}, axes={"arm": ["lora", "cross_lora"]})
    assert not forecast(asked, Hardware(8, 80e9)).steps["tune"].fits
    assert forecast(asked, Hardware(8, 80e9, workers=8, sharded=True)).steps["tune"].fits
    for made in ({"base": "some/base"}, {"adapter": "some/adapter"}):  # elsewhere: nothing is trained for it
        given = sweep(recipe={"teacher": "llama2-70b", "update": made}, axes={"arm": ["lora", "cross_lora"]})
        assert "tune" not in forecast(given, Hardware(8, 80e9)).steps


def test_what_a_plan_leaves_out_is_named() -> None:
    """Maps by their arms, and what else is made before: a control takes what its arm does, and isn't named again."""
    arms = ["lora", "theseus", "ridge", "laten", "titok", "lora_equal", "distil_tuned"]
    asked = sweep(recipe={"teacher": "llama2-70b"}, axes={"arm": arms})
    told = counts(asked, 80e9)["cost"]["not_counted"]
    assert told == ["the maps of theseus, ridge", "what else is made for laten"]


def test_what_arms_take_beyond_a_training_is_counted() -> None:
    """A longer one by its length; predictions on all rows by a forward pass over them, and on as many as equal compute
    buys by a measuring pass."""
    of, here = (
        {"teacher": "llama2-13b", "student": "llama2-7b", "update": {"adapter": "some/adapter"}},
        Hardware(8, 80e9),
    )

    def seconds(*arms: object) -> tuple[float, dict[str, float]]:
        told = forecast(sweep(recipe=of, axes={"arm": ["lora", *arms]}, lr=[3e-4], repeats=8), here)
        return told.steps["sweep"].seconds, {name: cost.seconds for name, cost in told.steps.items()}

    plain, each = seconds("pissa")
    longer, _ = seconds("lora_equal")
    sizes = [Anatomy.of(of[who], who).geometry.weights for who in ("teacher", "student")]
    assert longer - plain == pytest.approx(each["finetune"] * sizes[0] / sizes[1], rel=0.05)  # of whole rounds
    equal, _ = seconds("distil")
    assert equal - plain == pytest.approx(each["measure"])
    tuned, asked = seconds("distil_tuned")
    scored = each["teacher_score"]  # the teacher with the update that was given
    assert tuned - plain == pytest.approx(asked["ask"] + scored)
    rows = 1000 * 2048 * 2 * Anatomy.of(of["teacher"], "teacher").multiplied
    assert asked["ask"] == pytest.approx(rows / (here.gpus or 1) / here.flops, rel=0.01)


@pytest.mark.parametrize("hours", [12, 16, 30])
def test_a_budget_is_what_the_plan_says_of_what_it_buys(hours: int) -> None:
    """With a teacher that is tuned by the sweep, whose tries cost more than a student's."""
    asked = sweep(
        recipe={"teacher": "llama2-13b", "student": "llama2-7b"}, axes={"arm": ["lora", "pissa"]},
        tuned_teacher=True, tuning_seeds=2, search={"kind": "random"},
    )  # fmt: skip
    bought = afford(asked, f"{hours}gpu-hours")
    one = Hardware(1, 80e9)
    paid, more = (
        forecast(bought.model_copy(update={"trials": (bought.trials or 0) + some}), one).steps["sweep"].gpu_hours
        for some in (0, 3 * asked.tuning_seeds)  # another setting for each of three arms
    )
    assert paid <= hours * 1.001 < more
