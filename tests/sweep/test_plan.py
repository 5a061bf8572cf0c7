"""The plan's figures against what models, PEFT and finished steps really have."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import FAMILIES, batch, saved, tiny
from transformers import AutoTokenizer

from orchestrator.cluster.ranks import Member, Placement
from orchestrator.cluster.sharding import GATHERED
from orchestrator.errors import UserError
from orchestrator.models.families import FAMILIES as ROWS
from orchestrator.recipe import Recipe, Sweep, TaskChoice
from orchestrator.run import Run
from orchestrator.scoring import budgets
from orchestrator.scoring.caches import held
from orchestrator.sweep.costs import (
    GATHERS,
    Anatomy,
    finetune_cost,
    judge_cost,
    measure_cost,
    score_cost,
    teacher_score_cost,
)
from orchestrator.sweep.hardware import Cost, Hardware, refuse_unless_fits
from orchestrator.sweep.lengths import Beside, Lengths, Row, lengths_for, lengths_of
from orchestrator.sweep.plan import forecast
from orchestrator.sweep.presets import complete
from orchestrator.sweep.room import within
from orchestrator.tasks import TASKS
from orchestrator.tasks.base import draw
from orchestrator.tasks.template import Encoded, encode
from orchestrator.teacher.measure import Measuring, measuring
from orchestrator.teacher.scale import Scale
from orchestrator.teacher.scores import FILE

PUBLISHED = {  # billions of parameters, from the models' own pages
    "llama2-7b": 6.74, "llama2-13b": 13.02, "llama2-70b": 68.98, "llama3.1-8b": 8.03, "llama3.1-70b": 70.55,
    "llama3.1-405b": 405.85, "llama3.2-1b": 1.24, "llama3.2-3b": 3.21, "mistral-7b": 7.25, "mistral-large": 122.61,
    "qwen2.5-0.5b": 0.49, "qwen2.5-1.5b": 1.54, "qwen2.5-3b": 3.09, "qwen2.5-7b": 7.62, "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76, "qwen2.5-72b": 72.71, "qwen3-0.6b": 0.60, "qwen3-1.7b": 1.72, "qwen3-4b": 4.02,
    "qwen3-8b": 8.19, "qwen3-14b": 14.77,
}  # fmt: skip


def sweep(**document: object) -> Sweep:
    return Sweep.model_validate(complete({"recipe": {"teacher": "llama2-70b"}, **document}))


@pytest.mark.parametrize("alias", PUBLISHED)
def test_an_alias_has_as_many_parameters_as_its_page_says(alias: str) -> None:
    assert Anatomy.of(alias, "teacher").parameters / 1e9 == pytest.approx(PUBLISHED[alias], abs=0.006)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_counted_as_the_model_it_holds(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", family)
    found = Anatomy.of(str(tmp_path / "model"), "teacher")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.width == 4
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    assert found.multiplied == found.parameters - (0 if tied else embedding.numel())


def test_llama2_70b_on_the_clusters_of_the_readme() -> None:
    eight = forecast(sweep(), Hardware(8, 80e9))
    assert all(cost.fits for cost in eight.steps.values())
    assert eight.scale == Scale(128) and eight.uncut == () and eight.trials == 36
    measure = eight.steps["measure"]
    weights = 2 * eight.teacher.parameters
    live = 2 * (GATHERED + 32000 * 8192)
    assert measure.per_rank.weights_bytes == weights // 8 + live
    assert measure.network_bytes == pytest.approx(8 * 2 * GATHERS * weights * 7 / 8, rel=0.001)  # 2 rounds of 16
    assert eight.steps["sweep"].gpu_hours == pytest.approx(8 * eight.steps["sweep"].seconds / 3600)
    two = forecast(sweep(), Hardware(2, 141e9))
    assert two.steps["sweep"].fits and not forecast(sweep(), Hardware(2, 80e9)).steps["measure"].fits
    assert two.steps["sweep"].smallest_cluster == 2


def test_the_smallest_cluster_is_the_smallest() -> None:
    told = forecast(sweep(recipe={"teacher": "llama3.1-405b"}), Hardware())
    count = told.steps["measure"].smallest_cluster
    assert count and told.steps["measure"].ranks == count and told.steps["measure"].fits
    assert not forecast(sweep(recipe={"teacher": "llama3.1-405b"}), Hardware(count - 1)).steps["measure"].fits


@pytest.mark.parametrize("granularity", [1, 16])
def test_statistics_are_what_a_pass_leaves(granularity: int, tmp_path: Path) -> None:
    """As many numbers as the plan says, but for the row and column sums that granularity 1 does without."""
    saved(tmp_path / "teacher", "llama")
    rows = [Encoded(str(n), ids, ids) for n, ids in enumerate(batch(2)["input_ids"].tolist())]
    job = Measuring(str(tmp_path / "teacher"), rows, 0, "float32", tmp_path, out=tmp_path, granularity=granularity)
    list(measuring(job, Member()))
    teacher = Anatomy.of(str(tmp_path / "teacher"), "teacher")
    recipe = Recipe(teacher="a", student="b")
    told = measure_cost(teacher, recipe, Scale(granularity), 1, Hardware()).per_rank.statistics_bytes
    left = sum(tensor.numel() for tensor in load_file(tmp_path / FILE).values())
    beside = sum(n + m for n, m in teacher.matrices if n > 1) if granularity == 1 else 0
    vectors = sum(2 * m + 1 if granularity == 1 else -(-m // granularity) + 1 for n, m in teacher.matrices if n == 1)
    assert abs(told // 4 - left - beside) <= vectors


def test_an_adapter_takes_what_peft_trains(tmp_path: Path) -> None:
    """16 bytes each: a parameter, its gradient and AdamW's two moments; rank 2r, of which half is frozen."""
    saved(tmp_path / "student", "llama")
    student = Anatomy.of(str(tmp_path / "student"), "student")
    told = finetune_cost(student, Recipe(teacher="a", student="b"), 4, Hardware()).per_rank.factors_bytes
    targets = ROWS["llama"].targets
    adapted = get_peft_model(tiny("llama"), LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    assert told == 16 * sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_trial_that_would_not_fit_computes_its_activations_again() -> None:
    """On a GPU alone, unless the recipe says it; of each layer its inputs are kept, and it takes longer."""
    large, small = (forecast(sweep(), Hardware(8, size)) for size in (80e9, 40e9))
    assert not large.recompute and small.recompute and small.as_json()["gradient_checkpointing"]
    plain, less = (told.steps["finetune"] for told in (large, small))
    assert less.fits and less.seconds == pytest.approx(1.5 * plain.seconds)
    assert less.per_rank.weights_bytes == plain.per_rank.weights_bytes
    kept = 32 * 2048 * 4096 * 2  # layers, tokens, hidden size, bytes
    assert kept < less.per_rank.activations_bytes < 5 * kept < plain.per_rank.activations_bytes / 10
    assert within(Run(), small, Hardware(8, 40e9)).gradient_checkpointing
    assert not within(Run(), large, Hardware(8, 80e9)).gradient_checkpointing
    assert not forecast(sweep(), Hardware(1, 40e9, cuda=False)).recompute
    for said, size in ((True, 80e9), (False, 40e9)):
        told = forecast(
            sweep(recipe={"teacher": "llama2-70b", "finetune": {"gradient_checkpointing": said}}), Hardware(8, size)
        )
        assert told.recompute is said and told.steps["finetune"].fits is said


def test_one_rank_sends_nothing_and_a_metric_costs_what_it_does() -> None:
    teacher, scale = Anatomy.of("llama2-7b", "teacher"), Scale(128)

    def cost(ranks: int = 1, **measure: object) -> tuple[int, float]:
        recipe = Recipe.model_validate({"teacher": "a", "student": "b", "measure": measure})
        found = measure_cost(teacher, recipe, scale, ranks, Hardware(tokens=2048))
        return found.network_bytes, found.seconds

    assert cost()[0] == 0
    assert cost(metric="magnitude") == (0, 0.0)
    assert cost(metric="wanda")[1] == pytest.approx(cost()[1] / 4)
    steps = {"kind": "integrated_gradients", "steps": 4}
    assert cost(metric=steps, max_tokens=512)[1] == pytest.approx(4 * cost(max_tokens=512)[1])
    assert cost(2, metric="wanda")[0] < cost(2)[0]


def test_a_teacher_that_a_gpu_has_room_for_is_held_whole_by_each() -> None:
    """Nothing is gathered then, in measuring and in scoring; what is larger, or waits elsewhere, is sharded."""
    pair: dict[str, object] = {"teacher": "llama2-13b", "student": "llama2-7b"}
    told = forecast(sweep(recipe=pair), Hardware(4, 80e9))
    one = forecast(sweep(recipe=pair), Hardware(1, 80e9))
    assert told.replicated and told.as_json()["replicated"] and not one.replicated
    for name in ("measure", "teacher_score"):
        assert told.steps[name].per_rank.weights_bytes == 2 * told.teacher.parameters
        assert told.steps[name].smallest_cluster == 1
    assert told.steps["measure"].network_bytes == 3 * told.steps["measure"].per_rank.statistics_bytes
    assert told.steps["teacher_score"].network_bytes == 0
    for hardware in (Hardware(4, 24e9), Hardware(4, 80e9, offload=True)):
        sharded = forecast(sweep(recipe=pair), hardware)
        assert not sharded.replicated and sharded.steps["measure"].network_bytes > 9e11
    assert not within(Run(), one, Hardware(1)).replicate and within(Run(), told, Hardware(4)).replicate


def test_each_token_of_a_sharded_teachers_answers_takes_a_gather() -> None:
    """By hand; and batches are as large as memory allows, so that there are few of them."""
    recipe = sweep().recipe
    lengths = replace(Lengths.longest(recipe), test=(Row(300, 150),) * 1319)
    teacher, new = Anatomy.of("llama2-70b", "teacher"), lengths.new

    def cost(answers: int, **more: bool) -> Cost:
        return teacher_score_cost(teacher, lengths, lengths.test, 8, Hardware(8, answers=answers, **more))

    few, many = cost(8192), cost(131072)
    batch, share = 8192 // (150 + new), -(-1319 // 8)
    gathers = {8192: math.ceil(math.ceil(1319 / batch) / 8) * (new + -(-batch // 13)), 131072: new + -(-share // 13)}
    assert share < 131072 // (150 + new)
    for told, answers in ((few, 8192), (many, 131072)):
        assert told.network_bytes == pytest.approx(gathers[answers] * 2 * teacher.parameters * 7, rel=1e-6)
        assert told.seconds == pytest.approx(told.network_bytes / 8 / 100e9, rel=1e-6)
    assert many.per_rank.peak_bytes > few.per_rank.peak_bytes and many.per_rank.weights_bytes < 20e9
    assert cost(8192, replicate=True).network_bytes == 0
    told = forecast(sweep(), Hardware(8, 80e9), lengths)
    assert told.held.answers >= 131072 and told.steps["teacher_score"].fits
    assert within(Run(), told, Hardware(8)).answers_at_once == told.held.answers


def test_offloaded_shards_leave_room_for_what_is_gathered() -> None:
    teacher = Anatomy.of("llama2-70b", "teacher")
    recipe = Recipe(teacher="a", student="b")
    whole = measure_cost(teacher, recipe, Scale(128), 1, Hardware()).per_rank.weights_bytes
    waiting = measure_cost(teacher, recipe, Scale(128), 1, Hardware(offload=True)).per_rank.weights_bytes
    assert whole == 2 * teacher.parameters
    assert waiting == 2 * (GATHERED + 32000 * 8192)


def test_exact_windows_take_the_pass_twice() -> None:
    once, twice = (forecast(sweep(recipe={"teacher": "llama2-70b", "measure": part}), Hardware(8)) for part in (
        {}, {"granularity": 1}
    ))  # fmt: skip
    assert twice.scale == Scale(128, exact=True)
    assert twice.steps["measure"].seconds == pytest.approx(2 * once.steps["measure"].seconds)
    sides = 8192 + 8192 + 2 * (1024 + 8192) + 8192 + 8192 + 3 * (28672 + 8192)  # q, k and v, o, gate, up and down
    assert twice.recorded_bytes == 32 * sides * 2 * 32 * 2048 and once.recorded_bytes == 0


def test_where_nothing_fits_no_cluster_is_named() -> None:
    told = forecast(sweep(), Hardware(memory=2e9))
    assert told.steps["sweep"].smallest_cluster is None and not told.steps["sweep"].fits
    assert told.steps["measure"].ranks == 1


def test_what_cannot_be_cut_is_listed_whole() -> None:
    told = forecast(sweep(recipe={"teacher": "mistral-7b", "student": "llama2-13b"}), Hardware(1))
    assert told.uncut[0] == "student: 40 layers, the teacher has only 32"
    assert "teacher: its q matrix is 4096 x 4096, smaller than the student's 5120 x 5120" in told.uncut
    assert "extract" not in told.steps and told.as_json()["steps"]["extract"] is None


def test_a_plan_that_does_not_fit_is_refused_with_its_figures() -> None:
    told = forecast(sweep(), Hardware(2, 80e9))
    refuse_unless_fits(forecast(sweep(), Hardware(8, 80e9)).steps["measure"], "measure")
    with pytest.raises(UserError, match=r"measure takes 79\.9 GB on each of 2 ranks.* 73\.6 GB are usable; 3 ranks"):
        refuse_unless_fits(told.steps["measure"], "measure")
    assert Placement.tokens == Hardware().tokens


def test_a_fine_tuning_that_two_share() -> None:
    """Each has the whole student and adapter, what is sent of its gradient, and half of the rows."""
    recipe = sweep().recipe
    student = Anatomy.of("llama2-7b", "student")
    one, two = (finetune_cost(student, recipe, 8, Hardware(workers=workers)) for workers in (1, 2))
    assert (one.ranks, two.ranks) == (1, 2)
    assert two.per_rank.weights_bytes == one.per_rank.weights_bytes
    assert two.per_rank.activations_bytes == one.per_rank.activations_bytes  # a row at a time
    assert 16 * two.per_rank.factors_bytes == 20 * one.per_rank.factors_bytes
    assert one.network_bytes == 0
    steps = 3 * -(-recipe.finetune.examples // recipe.finetune.batch_size)
    assert two.network_bytes == 2 * one.per_rank.factors_bytes // 4 * steps
    assert two.seconds == pytest.approx(one.seconds / 2)
    half = finetune_cost(student, recipe, 8, Hardware(workers=2, sharded=True))
    live = 2 * (GATHERED + 32000 * 4096)
    assert half.per_rank.weights_bytes == pytest.approx(one.per_rank.weights_bytes / 2 + live, abs=2)
    rounds = half.network_bytes - two.network_bytes
    assert rounds == 2 * one.per_rank.weights_bytes * steps * recipe.finetune.batch_size // 2  # a row each at a time
    assert forecast(sweep(), Hardware(8, 80e9, workers=2)).steps["finetune"].smallest_cluster == 2


def test_a_judge_that_is_loaded_here_is_planned(tmp_path: Path) -> None:
    """Its own weights and what its questions keep, where that is more than the student takes: never both at once."""
    model = saved(tmp_path / "judge", "qwen2", num_hidden_layers=6, hidden_size=512, max_position_embeddings=2048)
    judge, rows = Anatomy.of(str(tmp_path / "judge"), "judge-model"), (Row(90, 60), Row(70, 40))
    lengths = Lengths((Row(50, 10),), (Row(50, 10),), rows, rows, 30, 0)
    task = {"name": "alpaca", "judge_model": str(tmp_path / "judge")}
    of, here = {"teacher": "demo-teacher", "student": "demo-student"}, Hardware(1, 4e9, cuda=False)
    with_judge, without = (
        forecast(sweep(recipe={**of, "task": one}), here, lengths) for one in (task, {"name": "alpaca"})
    )
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cost = judge_cost(judge, lengths, rows, here, 4e9)
    assert cost.per_rank.weights_bytes == weights
    cache = held(model)
    asked = torch.ones(4, 90 + 30 + budgets.QUESTION + budgets.REPLY, dtype=torch.long)  # both pairs in both orders
    with torch.no_grad():
        model(input_ids=asked, past_key_values=cache, use_cache=True)
    kept = sum(one.numel() * one.element_size() for layer in cache.layers for one in (layer.keys, layer.values))
    assert kept < cost.per_rank.activations_bytes < 3 * kept
    for step in ("score", "teacher_score"):
        assert with_judge.steps[step].per_rank == cost.per_rank != without.steps[step].per_rank
        assert with_judge.steps[step].seconds == pytest.approx(without.steps[step].seconds + cost.seconds)
    there = replace(lengths, beside=(Beside(TaskChoice(**task), lengths),))
    plain = forecast(sweep(recipe={**of, "task": {"name": "alpaca"}}), here, there)
    assert plain.steps["score"].per_rank == cost.per_rank  # as one that judges a task beside is
    small = forecast(sweep(recipe={**of, "task": task}), replace(here, memory=weights), lengths)
    assert not small.steps["score"].fits and small.steps["score"].smallest_cluster is None


def test_a_teachers_pass_is_as_large_as_the_longest_seeds_make_it(demo_models: dict[str, Path], shared: Path) -> None:
    """Where tasks' seed examples are an axis: of another task than the trained one, as its own tokenizer cuts them."""
    models = {"teacher": str(demo_models["demo-teacher"]), "student": str(demo_models["demo-student"])}
    rows = {"task": {"name": "mmlu", "data": str(shared / "mmlu")}, "measure": {"examples": 4, "max_tokens": 9000}}
    of = {
        names: lengths_for(sweep(recipe=models | rows, axes={"measure.seeds": list(names)} if names else {})).seed
        for names in ((), ("mmlu",), ("super_ni",), ("mmlu", "super_ni"))
    }
    assert of[()] == of["mmlu",] and len(of["super_ni",]) == 4
    tokenizer = AutoTokenizer.from_pretrained(demo_models["demo-teacher"])
    seeds = draw(TASKS["super_ni"].splits(str(shared / "super_ni"))["seed"], 4)
    assert [row.tokens for row in of["super_ni",]] == [len(encode(one, "plain", tokenizer, 9000).ids) for one in seeds]
    assert of["mmlu", "super_ni"] == of["super_ni",] != of["mmlu",]


def test_tasks_that_are_scored_beside_are_planned(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Their rows as the student's own tokenizer cuts them, after the task's own: longer ones take more memory."""
    text, chats = tmp_path / "corpus.txt", tmp_path / "own.jsonl"
    text.write_text("Backwards: a line of a text.\n" * 100)
    turns = [("user", "ab" * 60), ("assistant", "ab")]
    rows = [[{"role": role, "content": f"{at}{text}"} for role, text in turns] for at in range(20)]
    chats.write_text("".join(json.dumps({"id": f"{at}", "messages": row}) + "\n" for at, row in enumerate(rows)))
    recipe = {"teacher": str(demo_models["demo-teacher"]), "student": str(demo_models["demo-student"])}
    one = sweep(recipe=recipe | {"task": "demo"}, tasks=[str(text), str(chats), "arc_easy", "mmlu"])
    lengths = lengths_of(one.recipe, beside=one.tasks)
    own, (of_text, of_chats, of_mmlu) = lengths, (found for _, found in lengths.counted)
    assert lengths.not_counted == ["arc_easy"]  # of mmlu it is known how many rows are published
    assert of_mmlu.unknown and len(of_mmlu.test) == 14042 and of_mmlu.choices == 4
    tokenizer = AutoTokenizer.from_pretrained(demo_models["demo-student"])
    assert sum(row.tokens - row.asked for row in of_text.test) == len(tokenizer(text.read_text()).input_ids)
    assert len(of_chats.test) == 4 and min(row.asked for row in of_chats.test) >= len(tokenizer("ab" * 60).input_ids)
    twice = lengths_of(one.recipe, beside=[TaskChoice(name="mmlu"), TaskChoice(name="mmlu", shots=5)])
    assert [str(task) for task, _ in twice.counted] == ["mmlu", "mmlu:5"]
    here = Hardware(1, 4e9, cuda=False)
    beside, alone = (forecast(one, here, of) for of in (lengths, replace(own, beside=())))
    student = Anatomy.of(recipe["student"], "student")
    more = [score_cost(student, of, of.test, one.recipe.rank, here) for _, of in lengths.counted]
    assert beside.choosing == alone.choosing  # by the task's own validation rows
    assert beside.steps["score"].seconds == pytest.approx(alone.steps["score"].seconds + sum(of.seconds for of in more))
    fullest = max(of.per_rank.peak_bytes for of in (*more, alone.steps["score"]))
    assert beside.steps["score"].per_rank.peak_bytes == fullest > alone.steps["score"].per_rank.peak_bytes
