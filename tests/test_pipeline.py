"""One recipe through all its steps, on the demo pair and its real task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from orchestrator import pipeline
from orchestrator.cluster.ranks import Placement
from orchestrator.models import adapters
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Recipe, Sweep
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete
from orchestrator.transfer.arms import ARMS

LABELLED = {"input_ids": torch.randint(5, 100, (6, 9)), "attention_mask": torch.ones(6, 9, dtype=torch.long)}
LABELLED["labels"] = LABELLED["input_ids"]
ROWS = torch.randint(5, 100, (3, 20), generator=torch.Generator().manual_seed(0))


def recipe(**fields: Any) -> Recipe:
    short = {"examples": 128, "epochs": 1, "batch_size": 64, "dropout": 0.1}
    scored = {"examples": 20}
    document = {"recipe": {"rank": 4, "lr": 1e-2, "finetune": short, "evaluate": scored, **fields}}
    return Sweep.model_validate(complete(document)).recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize(
    "arm", ["lora", "pissa", "lora_ga", "transfer", "spectrum_control", "distil", "theseus", "ridge"]
)
def test_the_exported_adapter_is_the_trained_model(
    arm: str, store: Store, demo_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.Tensor] = []
    save = adapters.save

    def save_and_remember(model: Any, *args: Any) -> None:
        with torch.no_grad():
            trained.append(model.eval()(ROWS).logits)
        save(model, *args)

    monkeypatch.setattr(adapters, "save", save_and_remember)
    asked = recipe(arm=arm)
    step = pipeline.finetune_step(asked, prepare(asked))
    folder = materialise(step, store)
    stock = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"], dtype="float32").eval()
    with torch.no_grad():
        before = stock(ROWS).logits
        loaded = PeftModel.from_pretrained(stock, str(folder)).eval()(ROWS).logits
    assert float((trained[-1] - before).abs().max()) > 0.1
    assert float((loaded - trained[-1]).abs().max()) < 1e-4
    card = (folder / "README.md").read_text()
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("demo-student")' in card
    assert f"| arm | {arm} |" in card


@pytest.mark.parametrize("arm", [kind for kind, arm in ARMS.items() if "carried" not in arm.needs])
def test_every_arm_starts_at_the_students_own_function(arm: str, store: Store, demo_models: dict[str, Path]) -> None:
    from orchestrator.models.loading import load
    from orchestrator.student.finetune import adapted
    from orchestrator.student.given import read

    asked = recipe(arm=arm)
    ready = prepare(asked)
    start = materialise(pipeline.extract_step(asked, ready), store) if asked.arm.extracts else None
    given = read({"factors": start} if start else {})
    stock = load(ready.student.folder)
    with torch.no_grad():
        before = stock(ROWS).logits
    model = adapted(stock, asked.arm, 4, 4.0, 0.0, 0, given, [LABELLED])  # with gradients: one arm looks at them
    with torch.no_grad():
        assert float((model(ROWS).logits - before).abs().max()) < 1e-4
    up, down = adapters.factors_of(adapters.lora_layers(model)["model.layers.0.mlp.gate_proj"])
    live = (up[:, :4] @ down[:4]).detach()
    starts_at_zero = not asked.arm.changes_base
    assert float(live.norm()) < 1e-5 if starts_at_zero else float(live.norm()) > 0.02
    if start:
        record = json.loads((start / "transfer.json").read_text())
        values = record["singular_values"]["model.layers.0.mlp.gate_proj.weight"][:4]
        assert torch.linalg.svdvals(live)[:4].tolist() == pytest.approx(values, rel=1e-3)


def test_evaluation_keeps_every_example_and_agrees_with_itself(store: Store, demo_models: dict[str, Path]) -> None:
    asked = recipe(arm="lora")
    step = pipeline.trial(asked, prepare(asked), "test")
    folder = materialise(step, store)
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(lines) == 20
    assert set(lines[0]) == {"id", "prompt", "output", "answer", "gold", "score", "cut", "loss"}
    assert metrics["score"] == pytest.approx(sum(line["score"] for line in lines) / 20)
    assert all(line["score"] == float(line["answer"] == line["gold"]) for line in lines)
    assert all(line["prompt"].endswith("\n\n<|assistant|>\n") for line in lines)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["lineage"]["config"]["metric"]["filter_name"] == "whole-answer"
    assert manifest["seconds"] > 0
    assert set(manifest["files"]) == {"examples.jsonl", "metrics.json"}


def test_the_same_recipe_gives_the_same_score(demo_models: dict[str, Path], store: Store, tmp_path: Path) -> None:
    asked = recipe(arm="transfer", seed=3)
    ready = prepare(asked)
    folders = [materialise(pipeline.trial(asked, ready, "validation"), place) for place in (store, Store(tmp_path))]
    first, second = ((folder / "examples.jsonl").read_text() for folder in folders)
    assert first == second


def test_parts_of_a_batch_add_up_to_it(demo_models: dict[str, Path], store: Store) -> None:
    curves = []
    for part in (64, 16):
        short = {"examples": 128, "epochs": 2, "batch_size": 64, "micro_batch_size": part, "dropout": 0.0}
        asked = recipe(arm="transfer", finetune=short)
        folder = materialise(pipeline.finetune_step(asked, prepare(asked)), store)
        curves.append([point["loss"] for point in json.loads((folder / "history.json").read_text())])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_ranks_share_one_extraction_and_arms_one_measurement(demo_models: dict[str, Path]) -> None:
    ready = prepare(recipe())
    asked = [recipe(arm=arm, rank=rank) for arm in ("transfer", "spectrum_control") for rank in (2, 4, 8)]
    assert len({pipeline.extract_step(one, ready).fingerprint for one in asked}) == 1
    others = [recipe(arm="transfer", layers="last"), recipe(arm="transfer", structure="row_column")]
    assert len({pipeline.extract_step(one, ready).fingerprint for one in [asked[0], *others]}) == 3
    assert len({pipeline.measure_step(one, ready).fingerprint for one in [*asked, *others]}) == 1


def test_a_path_is_no_part_of_a_fingerprint(demo_models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    moved = {name: shutil.copytree(folder, tmp_path / name) for name, folder in demo_models.items()}
    asked = recipe(arm="transfer")
    task = {"name": "demo"}
    there = recipe(arm="transfer", task=task, teacher=str(moved["demo-teacher"]), student=str(moved["demo-student"]))
    steps = [pipeline.trial(one, prepare(one), "test") for one in (asked, there)]
    assert steps[0].fingerprint == steps[1].fingerprint


def test_a_diverging_trial_says_so(demo_models: dict[str, Path], store: Store) -> None:
    from orchestrator.errors import UserError

    asked = recipe(arm="lora", lr=1e38)
    with pytest.raises(UserError, match=r"lr: after training the loss on example 'demo_test_\d+' is nan"):
        materialise(pipeline.trial(asked, prepare(asked), "test"), store)
    longer = recipe(arm="lora", lr=1e20, finetune={"examples": 256, "epochs": 2, "batch_size": 64})
    with pytest.raises(UserError, match=r"lr: the loss is (nan|inf) at step \d+; take a smaller one than 1e\+20"):
        materialise(pipeline.finetune_step(longer, prepare(longer)), store)


@pytest.mark.parametrize("metric", ["taylor", "wanda"])
def test_two_passes_choose_what_one_chooses(demo_models: dict[str, Path], store: Store, metric: str) -> None:
    """The second pass's scores are those of single weights, so every window and its factors are the same."""
    found = {}
    for passes in (1, 2):
        asked = recipe(measure={"passes": passes, "granularity": 1, "metric": metric, "examples": 6})
        step = pipeline.extract_step(asked, prepare(asked))
        assert ("recorded" in step.inputs) == (passes == 2 and metric == "taylor")
        assert step.inputs["measured"].config["granularity"] == (1 if passes == 1 else 16)
        found[passes] = json.loads((materialise(step, store) / "transfer.json").read_text())
    assert found[1]["windows"] == found[2]["windows"]
    for name, values in found[1]["singular_values"].items():
        assert found[2]["singular_values"][name] == pytest.approx(values, rel=1e-3)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.long
def test_any_number_of_ranks_gives_the_same_adapter(room: None, demo_models: dict[str, Path], tmp_path: Path) -> None:
    """In two passes, so that measuring, recording and cutting are all shared out; in shares of a rank's tokens, too."""
    asked = recipe(measure={"passes": 2, "examples": 5})
    step = pipeline.extract_step(asked, prepare(asked))
    one = materialise(step, Store(tmp_path / "one"))
    two = materialise(step, Store(tmp_path / "two"), placement=Placement(2, tokens=100))
    about, other = (json.loads((folder / "transfer.json").read_text()) for folder in (one, two))
    assert about["windows"] == other["windows"] and about["layers"] == other["layers"]
    left, right = (adapters.read_start(folder) for folder in (one, two))
    assert left.keys() == right.keys()
    for name, (b, a) in left.items():
        assert torch.allclose(b @ a, right[name][0] @ right[name][1], atol=1e-4), name
