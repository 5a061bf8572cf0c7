"""Interrupted, in rungs or at once: the same adapter, bit for bit. And what distillation adds, by plain torch."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import recipe, weights

from orchestrator import pipeline
from orchestrator.models.loading import load
from orchestrator.prepare.ready import prepare
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.student import training
from orchestrator.tasks.template import Encoded, collate
from orchestrator.teacher.labels import affordable, file_of, read_labels
from orchestrator.transfer.arms import Distil, Lora
from orchestrator.transfer.distillation import divergence, likeliest


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    torch.set_num_threads(1)  # sums over several threads have other last bits, and a test has one
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def whole(store: Store, demo_models: dict[str, Path]) -> Path:
    asked = recipe()
    return materialise(pipeline.finetune_step(asked, prepare(asked)), store)


class Killed(Exception):
    pass


def test_a_training_goes_on_from_its_checkpoint(
    whole: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe()
    step = pipeline.finetune_step(asked, prepare(asked))
    again = Store(tmp_path)
    for one in list(step.ancestors())[:-1]:
        materialise(one, again)
    seen: list[int] = []

    class Dying(training.Watch):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.every = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_step_end(args, state, control, **more)
            seen.append(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 7 and 8 not in seen and seen.count(7) == 1:
                raise Killed

    monkeypatch.setattr(training, "Watch", Dying)
    with pytest.raises(Killed):
        materialise(step, again)
    assert again.find("finetune", step.fingerprint) is None
    told: list[tuple[str, int, str]] = []

    def track(items: Iterable[Any], what: str, total: int) -> Generator[Any, str, None]:
        for item in items:
            line = yield item
            told.append((what, total, line))

    folder = materialise(step, again, track)
    assert told[:7] == [("training", 18, "from a checkpoint")] * 7
    assert {(*one[:2], one[2].rpartition(" ")[0]) for one in told[7:]} == {("training", 18, "loss")}
    assert len(told) == 18
    assert seen == [*range(1, 8), *range(8, 19)]  # no step was done twice
    right, found = weights(whole), weights(folder)
    assert all(torch.equal(right[name], found[name]) for name in right)
    assert (folder / "history.json").read_text().count("loss") == (whole / "history.json").read_text().count("loss")
    assert not list(folder.glob("checkpoint-*"))


def test_rungs_end_where_the_whole_training_ends(whole: Path, store: Store) -> None:
    asked = recipe()
    ready = prepare(asked)
    shares = (1 / 9, 1 / 3, 1.0)
    folders = [
        materialise(pipeline.finetune_step(asked, ready, shares=shares[: count + 1]), store) for count in range(3)
    ]
    right, found = weights(whole), weights(folders[-1])
    assert all(torch.equal(right[name], found[name]) for name in right)
    assert not all(torch.equal(right[name], tensor) for name, tensor in weights(folders[0]).items())
    assert [path.name for path in (folders[0] / training.RUNG).glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("arm", ["lora", "eva"])
def test_fewer_rows_than_a_batch_in_several_parts(arm: str, demo_models: dict[str, Path], tmp_path: Path) -> None:
    few = {"examples": 10, "epochs": 1, "batch_size": 16, "micro_batch_size": 4}
    asked = recipe(arm, finetune=few)
    folder = materialise(pipeline.finetune_step(asked, prepare(asked)), Store(tmp_path))
    assert (folder / "adapter_model.safetensors").is_file()


def test_activations_that_are_computed_again_change_no_result(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose masks have to come again; and it is one and the same step, wherever it is done."""
    from transformers.models.llama import modeling_llama

    calls, forward = [0], modeling_llama.LlamaMLP.forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return forward(self, x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", counted)
    steps, curves, passes = [], [], []
    for again in (False, True):
        short = {"examples": 48, "epochs": 2, "batch_size": 16, "dropout": 0.1, "gradient_checkpointing": again}
        asked = recipe("pissa", finetune=short)
        steps.append(pipeline.finetune_step(asked, prepare(asked)))
        folder = materialise(steps[-1], Store(tmp_path / str(again)))
        curves.append(json.loads((folder / "history.json").read_text()))
        passes.append(calls[0] - sum(passes))
    assert steps[0].fingerprint == steps[1].fingerprint
    assert passes[1] == 2 * passes[0]
    for one, other in zip(*curves, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norms"] == pytest.approx(other["grad_norms"], rel=1e-5)


def test_auto_is_what_the_plan_found(demo_models: dict[str, Path]) -> None:
    short = {"examples": 48}
    for said, found, told in (("auto", True, True), ("auto", False, False), (False, True, False), (True, False, True)):
        asked = recipe("lora", finetune={**short, "gradient_checkpointing": said})
        step = pipeline.finetune_step(asked, prepare(asked, recompute=found))
        assert step.where["gradient_checkpointing"] is told and "gradient_checkpointing" not in step.config


def test_the_rest_is_one_outcome_and_the_divergence_is_torchs() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 300) * 3, torch.randn(5, 300, requires_grad=True)
    kept = likeliest(teacher, 2.0)
    assert kept["tokens"].shape == (5, 128) and kept["logs"].shape == (5, 129)
    assert torch.allclose(kept["logs"].exp().sum(-1), torch.ones(5), atol=1e-5)
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student / 2, -1)
    mask = torch.zeros(5, 300, dtype=torch.bool).scatter(1, kept["tokens"].long(), True)
    lumped = [
        torch.cat([one.masked_select(mask).view(5, -1), one.masked_fill(mask, 0).sum(-1, keepdim=True)], -1)
        for one in (p, q)
    ]
    wanted = torch.nn.functional.kl_div(lumped[1].log(), lumped[0], reduction="none").sum(-1) * 4
    found = divergence(student, kept["tokens"], kept["logs"], 2.0)
    assert torch.allclose(found, wanted, atol=1e-4)
    (grad,) = torch.autograd.grad(found.sum(), student, retain_graph=True)
    assert torch.allclose(grad, torch.autograd.grad(wanted.sum(), student)[0], atol=1e-5)


def test_a_small_vocabulary_is_kept_whole() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 50), torch.randn(4, 50, requires_grad=True)
    kept = likeliest(teacher, 1.0)
    found = divergence(student, kept["tokens"], kept["logs"], 1.0)
    wanted = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(found.sum(), student)[0]).all()


def test_labels_are_the_teachers_predictions_of_as_many_rows_as_equal_compute_buys(
    store: Store, demo_models: dict[str, Path]
) -> None:
    asked = recipe("distil")
    ready = prepare(asked)
    step = pipeline.labels_step(asked, ready)
    folder = materialise(step, store)
    found = read_labels(folder)
    teacher = load(ready.teacher.folder)
    encoded = _encoded(step, store)
    seeds = sum(len(one.ids) for one in _encoded(step, store, "seeds"))
    count = len(affordable(encoded, 3 * seeds))
    assert len(found) == count < len(encoded)
    assert sum(len(one.ids) for one in encoded[:count]) <= 3 * seeds < sum(len(one.ids) for one in encoded[: count + 1])
    for example in encoded[:5]:
        with torch.no_grad():
            logits = teacher(torch.tensor([example.ids])).logits[0, :-1]
        own = [place for place, label in enumerate(example.labels[1:]) if label != -100]
        right = likeliest(logits[own][:, :101], 2.0)  # 101 tokens, and three rows of padding
        tokens, logs = found[file_of(example.id)]
        assert torch.equal(tokens, right["tokens"])
        assert torch.allclose(logs[:, :-1], right["logs"][:, :-1], atol=1e-4)


def _encoded(step: Any, store: Store, name: str = "rows") -> list[Encoded]:
    from orchestrator.models.loading import load_tokenizer
    from orchestrator.tasks import rows as data
    from orchestrator.tasks.template import encode

    tokenizer = load_tokenizer(step.where["teacher"])
    rows = data.read(materialise(step.inputs[name], store))
    return [encode(one, "plain", tokenizer, 2048) for one in rows]


def test_the_loss_mixes_answers_and_predictions(demo_models: dict[str, Path], tmp_path: Path) -> None:
    model = load(str(demo_models["demo-student"]))
    draw = torch.Generator().manual_seed(3)
    rows = [
        Encoded(name, ids := torch.randint(5, 100, (width,), generator=draw).tolist(), [-100] * 4 + ids[4:])
        for name, width in (("a", 9), ("b", 12), ("c", 7))
    ]
    targets = {file_of(one.id): likeliest(torch.randn(len(one.ids) - 4, 101, generator=draw), 2.0) for one in rows[:2]}
    labels = {name: (kept["tokens"], kept["logs"]) for name, kept in targets.items()}
    how: dict[str, Any] = {"lr": 1e-3, "epochs": 1, "batch": 3, "micro": 3, "warmup": 0.0, "max_grad_norm": 1.0}
    how |= {"recompute": False}
    args = training.arguments(tmp_path, steps=1, **how, seed=0)
    said = {one.id: labels[file_of(one.id)] for one in rows[:2]}
    mixed = Distil(weight=0.3, temperature=2.0).loss
    trainer = training.Training(mixed, said, 0, model=model, args=args, train_dataset=rows)
    inputs = trainer.data_collator(rows)
    count = sum(len(one.ids) - 4 for one in rows)
    found = trainer.compute_loss(model, inputs, num_items_in_batch=count)
    wanted = torch.tensor(0.0)
    for row in rows:
        logits = model(torch.tensor([row.ids])).logits[0, 3:-1]
        gold = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[4:]), reduction="sum")
        if file_of(row.id) in labels:
            gold = 0.7 * gold + 0.3 * divergence(logits, *labels[file_of(row.id)], 2.0).sum()
        wanted = wanted + gold
    assert float(found.detach()) == pytest.approx(float(wanted) / count, rel=1e-4)
    plain = training.Training(Lora().loss, {}, 0, model=model, args=args, train_dataset=rows)
    usual = plain.compute_loss(model, collate(rows, 0), num_items_in_batch=torch.tensor(count))
    none = training.Training(mixed, {}, 0, model=model, args=args, train_dataset=rows)
    assert float(none.compute_loss(model, none.data_collator(rows), num_items_in_batch=count)) == pytest.approx(
        float(usual), rel=1e-5
    )
