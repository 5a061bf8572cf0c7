"""The teacher's own score: by any number of ranks what one process that holds it all makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from orchestrator import pipeline
from orchestrator.carry.excess import read_excess
from orchestrator.cluster.ranks import Placement
from orchestrator.errors import UserError
from orchestrator.models.loading import load
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Recipe
from orchestrator.scoring.evaluate import evaluate, write
from orchestrator.scoring.judge import Scored
from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.tasks.base import Example
from orchestrator.tasks.knowedit import METRIC
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.rows import data_step
from orchestrator.teacher.teacher_score import teacher_score

PAIR = {"teacher": "demo-teacher", "student": "demo-student", "task": {"name": "demo"}}
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("lasting")]


def letters(count: int) -> list[Example]:
    """Questions of unlike lengths with a letter for an answer."""
    texts = ["".join(chr(97 + (number * place) % 26) for place in range(2 + number)) for number in range(count)]
    return [
        Example.model_validate(
            {
                "id": f"letter-{number}",
                "messages": [
                    {"role": "user", "content": f"Backwards: {text}"},
                    {"role": "assistant", "content": "abcd"[number % 4]},
                ],
            }
        )
        for number, text in enumerate(texts)
    ]


def edits(count: int) -> list[Example]:
    """Words that are to be said forwards, and prompts around them: more of some than of others."""
    rows = []
    for number in range(count):
        word = "".join(chr(97 + (number * place) % 26) for place in range(2, 4 + number))
        asked = [("success", "Backwards"), *[("locality", "Sorted"), ("portability", "Copy")] * (number % 3)]
        probes = [
            {"of": of, "kind": f"{of}-{place}", "prompt": f"{verb}: {word}", "answer": word}
            for place, (of, verb) in enumerate(asked)
        ]
        turns = [{"role": "user", "content": f"Backwards: {word}"}, {"role": "assistant", "content": word}]
        rows.append(Example.model_validate({"id": f"edit-{number}", "messages": turns, "probes": probes}))
    return rows


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]


def agree(one: Path, other: Path) -> None:
    pairs = list(zip(lines(one), lines(other), strict=True))
    assert len(pairs) == 7
    for mine, theirs in pairs:
        assert mine.pop("loss") == pytest.approx(theirs.pop("loss"), rel=1e-4)
        assert mine == theirs


def adapter_of(model: Path, folder: Path) -> Path:
    """A LoRA of every matrix, embedding and head among them, that changes what the model says."""
    torch.manual_seed(0)
    modules = ["q_proj", "o_proj", "down_proj", "embed_tokens", "lm_head"]
    peft_model = get_peft_model(load(str(model)), LoraConfig(r=4, target_modules=modules, init_lora_weights=False))
    with torch.no_grad():
        for name, factor in peft_model.named_parameters():
            if "lora_" in name:
                factor.mul_(0.3)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize(
    ("ranks", "replicate"), [(1, False), pytest.param(3, False, marks=pytest.mark.long), (3, True)]
)
@pytest.mark.parametrize("kind", ["exact_match", "multiple_choice", "edit_success", "adapted"])
def test_ranks_score_as_the_whole_model_does(
    demo_models: dict[str, Path], tmp_path: Path, kind: str, ranks: int, replicate: bool
) -> None:
    """Seven rows, two at a time, on three ranks: in the last round two of them have none left."""
    recipe = Recipe.model_validate({**PAIR, "arm": "lora", "evaluate": {"examples": 7}})
    step = pipeline.evaluate_step(recipe, prepare(recipe), "test", "teacher")
    assert step.run is teacher_score and step.needs == "ranks"
    rows = step.inputs["rows"]
    config = dict(step.config)
    if kind == "multiple_choice":
        rows = data_step(letters(7))
        metric = Metric(kind="multiple_choice", filter_name="letter")
        config |= {"metric": {**vars(metric), "ignore": []}, "choices": list("abcd")}
    if kind == "edit_success":
        rows, config = data_step(edits(7)), config | {"metric": METRIC.as_json()}
    worn = adapter_of(demo_models["demo-teacher"], tmp_path / "adapter") if kind == "adapted" else None
    both = {
        run: Step(
            "evaluate",
            run,
            config,
            {"rows": rows},
            where={**step.where, "adapter": worn},
            needs="ranks" if run is teacher_score else "model",
        )
        for run in (evaluate, teacher_score)
    }
    whole = materialise(both[evaluate], Store(tmp_path / "whole"))
    varied = "output" if kind in ("exact_match", "adapted") else "score"
    assert len({line[varied] for line in lines(whole)}) > 1  # else equal ones would prove little
    where = Placement(ranks, tokens=100, answers=100, replicate=replicate)
    shared = materialise(both[teacher_score], Store(tmp_path / "ranks"), placement=where)
    assert both[evaluate].fingerprint == both[teacher_score].fingerprint
    agree(whole, shared)
    if worn:
        bare = replace(both[evaluate], where={**step.where, "adapter": None})
        plain = lines(materialise(bare, Store(tmp_path / "bare")))
        losses = zip(*([one["loss"] for one in some] for some in (plain, lines(whole))), strict=True)
        assert all(one != pytest.approx(other, rel=1e-3) for one, other in losses)
    told = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, shared)]
    assert told[0].pop("loss") == pytest.approx(told[1].pop("loss"), rel=1e-4)
    assert told[0] == told[1]


def test_ranks_predict_as_the_whole_model_does(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """What distillation learns from, over ranks of which one has no row left at the end."""
    recipe = Recipe.model_validate({**PAIR, "arm": {"kind": "distil", "rows": "all"}, "finetune": {"examples": 5}})
    step = pipeline.labels_step(recipe, prepare(recipe))
    one, three = (
        materialise(step, Store(tmp_path / str(ranks)), placement=Placement(ranks, tokens=40)) for ranks in (1, 3)
    )
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert len(files) == 5 and files == sorted(path.name for path in three.glob("*.safetensors"))
    for name in files:
        mine, theirs = load_file(one / name), load_file(three / name)
        torch.testing.assert_close(mine["logs"], theirs["logs"], atol=1e-4, rtol=0)
        assert (mine["tokens"][:, :8] == theirs["tokens"][:, :8]).float().mean() > 0.95


def test_ranks_tell_the_updates_excess_as_the_whole_model_does(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """With the update and without, over ranks of which one has no row left at the end."""
    recipe = Recipe.model_validate({**PAIR, "arm": "titok", "finetune": {"examples": 5}})
    step = pipeline.GIVEN["excess"](recipe, prepare(recipe))
    update = adapter_of(demo_models["demo-teacher"], tmp_path / "adapter")
    given = replace(step, inputs={"rows": step.inputs["rows"]}, where={**step.where, "update": update})
    one, three = (
        read_excess(materialise(given, Store(tmp_path / str(ranks)), placement=Placement(ranks, tokens=40)))
        for ranks in (1, 3)
    )
    assert len(one) == 5 and one.keys() == three.keys()
    for row in one:
        torch.testing.assert_close(one[row], three[row], atol=1e-4, rtol=0)
        assert one[row].abs().max() > 0.01


@pytest.mark.parametrize(("trained", "what"), [(True, "lr: after training the loss"), (False, "dtype: untrained")])
def test_a_loss_that_is_not_finite_is_told(tmp_path: Path, trained: bool, what: str) -> None:
    scored = Scored("row-3", "1 + 1 =", "2", "2", "2", 1.0)
    with pytest.raises(UserError, match=f"^{what}.*'row-3' is nan"):
        write(tmp_path, [scored], [float("nan")], {"kind": "exact_match", "filter_name": "none"}, trained=trained)
    assert not list(tmp_path.iterdir())
