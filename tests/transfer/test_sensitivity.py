"""The oracle is brute force: p * p.grad of one example at a time, from transformers' own loss."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, batch, tiny
from torch import Tensor, nn

from orchestrator.transfer.sensitivity import collect, example_losses


def brute_force(model: nn.Module, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for row in range(len(rows["input_ids"])):
        model.zero_grad()
        model(**{name: tensor[row : row + 1] for name, tensor in rows.items()}).loss.backward()
        for name, parameter in model.named_parameters():
            total[name] += (parameter * parameter.grad).abs().double().detach()
    model.zero_grad()
    return total


def measured(model: nn.Module, rows: dict[str, Tensor], *, step: int = 5, granularity: int = 1):
    with collect(model, granularity=granularity) as scores:
        for first in range(0, len(rows["input_ids"]), step):
            part = {name: tensor[first : first + step] for name, tensor in rows.items()}
            labels = part.pop("labels")
            example_losses(model(**part).logits, labels).sum().backward()
    return scores


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_equals_brute_force(family: str) -> None:
    model, rows = tiny(family), batch()
    right = brute_force(model, rows)
    scores = measured(model, rows)
    assert set(scores) == set(right)
    assert max(distance(scores[name].tiles, right[name]) for name in right) < 2e-6


@pytest.mark.parametrize("step", [1, 2, 3])
def test_any_micro_batch_gives_the_same_scores(step: int) -> None:
    model, rows = tiny("llama"), batch()
    whole, parts = measured(model, rows), measured(model, rows, step=step)
    assert max(distance(parts[name].tiles, whole[name].tiles.double()) for name in whole) < 2e-6


@pytest.mark.parametrize("family", ["llama", "qwen3-tied"])
@pytest.mark.parametrize("granularity", [8, 16, 24])  # 24 doesn't divide the sizes: the last tiles are smaller
def test_tiles_rows_and_columns_are_sums_of_exact_scores(family: str, granularity: int) -> None:
    model, rows = tiny(family), batch()
    right = brute_force(model, rows)
    for name, score in measured(model, rows, granularity=granularity).items():
        exact = right[name]
        if exact.ndim == 1:
            assert distance(score.tiles, exact) < 2e-6
            continue
        assert distance(score.rows, exact.sum(1)) < 2e-6
        assert distance(score.cols, exact.sum(0)) < 2e-6
        tiles = torch.stack([part.sum(0) for part in exact.split(granularity)])
        tiles = torch.stack([part.sum(1) for part in tiles.split(granularity, 1)], 1)
        assert distance(score.tiles, tiles) < 2e-6
        assert score.total == pytest.approx(float(exact.sum()), rel=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, rows = tiny("llama"), batch()
    right = brute_force(model, rows)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    scores = measured(model, rows)
    assert max(distance(scores[name].tiles, right[name]) for name in right) < 2e-6


def test_the_batch_gradient_is_not_the_answer() -> None:
    """Guards the test above it: with the absolute value after the sum, the oracle must disagree clearly."""
    model, rows = tiny("llama"), batch()
    labels = rows["labels"]
    example_losses(model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits, labels).sum().backward()
    pooled = {name: (p * p.grad).abs().double().detach() for name, p in model.named_parameters()}
    right = brute_force(model, rows)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert distance(pooled[name], right[name]) > 0.05


def test_the_model_is_left_as_it_was() -> None:
    model, rows = tiny("llama"), batch()
    model.lm_head.weight.requires_grad_(False)
    before = model(rows["input_ids"]).logits
    with pytest.raises(RuntimeError, match="stop"), collect(model):
        raise RuntimeError("stop")
    assert all("forward" not in vars(module) for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert torch.equal(model(rows["input_ids"]).logits, before)
    assert all(p.grad is None for p in model.parameters())


def test_a_module_without_a_rule_is_refused() -> None:
    with pytest.raises(TypeError, match="Conv1d"), collect(nn.Sequential(nn.Conv1d(2, 2, 1))):
        pass
