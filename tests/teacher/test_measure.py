"""The measured sensitivities of real checkpoints on real rows, against brute force example by example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orchestrator.errors import UserError
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.tasks import TASKS
from orchestrator.tasks.base import Example, read_jsonl
from orchestrator.tasks.rows import data_step
from orchestrator.tasks.template import Encoded, encode
from orchestrator.teacher.measure import measure
from orchestrator.teacher.scores import FILE, LAYERS, read_scores
from orchestrator.teacher.teacher_pass import batches


def brute_force(folder: str, examples: list[Example], max_tokens: int) -> dict[str, torch.Tensor]:
    """|p * p.grad| of transformers' own loss, one unpadded example at a time."""
    model, tokenizer = load(folder), load_tokenizer(folder)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for example in examples:
        row = encode(example, "plain", tokenizer, max_tokens)
        model.zero_grad()
        model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss.backward()
        for name, parameter in model.named_parameters():
            total[name] += (parameter * parameter.grad).abs().double().detach()
    return total


def measured(
    folder: Path, teacher: str, examples: list[Example], granularity: int, max_tokens: int, metric: str = "taylor"
) -> None:
    folder.mkdir()
    seeds = materialise(data_step(examples), Store(folder / "store"))
    measure(
        folder,
        seeds=seeds,
        teacher=teacher,
        template="plain",
        max_tokens=max_tokens,
        metric={"kind": metric},
        granularity=granularity,
        dtype="float32",
        skip_bad=False,
        partial=folder / "partial",
    )


@pytest.mark.parametrize("granularity", [1, 16])
def test_the_demo_teacher_on_its_task(demo_models: dict[str, Path], granularity: int, tmp_path: Path) -> None:
    check(str(demo_models["demo-teacher"]), TASKS["demo"].splits(None)["seed"][:8], granularity, tmp_path / "out", 2048)


def test_the_demo_teacher_on_gsm8k_rows(demo_models: dict[str, Path], shared: Path, tmp_path: Path) -> None:
    """Real rows, the shortest: in characters most are longer than what the demo teacher was made for."""
    rows = read_jsonl(shared / "gsm8k" / "train.jsonl")
    short = sorted(rows, key=lambda row: len(row.messages[0].content))[:4]
    check(str(demo_models["demo-teacher"]), short, 1, tmp_path / "out", 300)


def check(teacher: str, examples: list[Example], granularity: int, folder: Path, max_tokens: int) -> None:
    right = brute_force(teacher, examples, max_tokens)
    measured(folder, teacher, examples, granularity, max_tokens)
    for name, exact in right.items():
        found = read_scores(folder / FILE, name)
        if found.granularity == 1:
            assert float((found.tiles - exact).norm() / exact.norm()) < 1e-5, name
        else:
            assert float((found.rows - exact.sum(1)).norm() / exact.sum(1).norm()) < 1e-5, name
            assert float((found.cols - exact.sum(0)).norm() / exact.sum(0).norm()) < 1e-5, name
    prefix = FAMILIES["llama"].layer
    layers = json.loads((folder / "layers.json").read_text())
    for layer, score in enumerate(layers):
        total = sum(float(exact.sum()) for name, exact in right.items() if name.startswith(prefix.format(layer)))
        assert score == pytest.approx(total, rel=1e-5)


def test_a_loss_that_is_not_finite_names_its_example(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are finite and so large that the loss isn't."""
    model = load(str(demo_models["demo-teacher"]))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
    model.save_pretrained(tmp_path / "wild")
    load_tokenizer(str(demo_models["demo-teacher"])).save_pretrained(tmp_path / "wild")
    with pytest.raises(UserError, match=r"loss on seed example 'demo_seed_\d+' is (nan|inf)"):
        measured(tmp_path / "out", str(tmp_path / "wild"), TASKS["demo"].splits(None)["seed"][:2], 1, 2048)


def test_batches_hold_every_example_once_within_the_limit() -> None:
    rows = [Encoded(str(length), [0] * length, [0] * length) for length in (3, 1700, 40, 2048, 900, 5, 1000)]
    groups = batches(rows, 4096)
    assert sorted(row.id for group in groups for row in group) == sorted(row.id for row in rows)
    assert all(max(len(row.ids) for row in group) * len(group) <= 4096 for group in groups)
    assert len(groups) < len(rows)


@pytest.mark.parametrize("kind", ["magnitude", "wanda"])
def test_scores_without_a_gradient(demo_models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """|W|, or |W| times the norm of each input over all the examples' tokens, seen by plain hooks."""
    teacher, examples = str(demo_models["demo-teacher"]), TASKS["demo"].splits(None)["seed"][:5]
    measured(tmp_path / "out", teacher, examples, 1, 2048, kind)
    model, tokenizer = load(teacher), load_tokenizer(teacher)
    name = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].detach().double()))
    for example in examples:
        model(input_ids=torch.tensor([encode(example, "plain", tokenizer, 2048).ids]))
    weight = model.get_parameter(f"{name}.weight").detach().double().abs()
    right = weight * torch.cat(seen).norm(dim=0) if kind == "wanda" else weight
    found = read_scores(tmp_path / "out" / FILE, f"{name}.weight")
    assert float((found.tiles - right).norm() / right.norm()) < 1e-5
    assert len(json.loads((tmp_path / "out" / LAYERS).read_text())) == model.config.num_hidden_layers
