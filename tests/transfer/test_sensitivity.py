"""The oracle is brute force: p * p.grad of one example at a time, from transformers' own loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import FAMILIES, SIZES, batch, tiny
from torch import Tensor, nn

from orchestrator.transfer.sensitivity import collect, example_losses

# What each kind has that Llama hasn't; sizes apart, so that no product fits by accident.
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 24, "query_pre_attn_scalar": 24},  # scaled embedding, tied; norms of 1 + weight; soft caps
    "gemma3_text": {"head_dim": 24, "query_pre_attn_scalar": 24},  # norms on q and k as well
    "phi3": {"original_max_position_embeddings": 128},  # qkv and gate_up in one matrix each
    "olmo2": {},  # norms over the whole q and k, and after attention and feed-forward
    "gpt_neox": {},  # LayerNorm and biases everywhere, attention and feed-forward in parallel
    "gemma2-untied": {"head_dim": 24, "tie_word_embeddings": False},
    "gpt_neox-tied": {"tie_word_embeddings": True, "use_parallel_residual": False},
}


def made(kind: str) -> Any:
    """A tiny real model of a kind in float32, all of its parameters random and a few of them at a neutral value."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if kind in FAMILIES:
        return tiny(kind)
    settings = {**SIZES, **KINDS[kind], "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(kind.split("-")[0], **settings, attn_implementation="eager")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
            parameter.view(-1)[:3] = torch.tensor([0.0, -1.0, 1.0])  # where w, 1 + w and 1 - w are nothing
    return model


def offset(kind: str) -> float:
    return 1.0 if kind.startswith("gemma") else 0.0


def brute_force(model: nn.Module, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for row in range(len(rows["input_ids"])):
        model.zero_grad()
        model(**{name: tensor[row : row + 1] for name, tensor in rows.items()}).loss.backward()
        for name, parameter in model.named_parameters():
            total[name] += (parameter * parameter.grad).abs().double().detach()
    model.zero_grad()
    return total


def measured(
    model: nn.Module, rows: dict[str, Tensor], *, step: int = 5, granularity: int = 1, norm_offset: float = 0.0
):
    with collect(model, granularity=granularity, norm_offset=norm_offset) as scores:
        for first in range(0, len(rows["input_ids"]), step):
            part = {name: tensor[first : first + step] for name, tensor in rows.items()}
            labels = part.pop("labels")
            example_losses(model(**part).logits, labels).sum().backward()
    return scores


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("kind", [*FAMILIES, *KINDS])
def test_every_parameter_equals_brute_force(kind: str) -> None:
    model, rows = made(kind), batch()
    right = brute_force(model, rows)
    scores = measured(model, rows, norm_offset=offset(kind))
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
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
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


@pytest.mark.parametrize("kind", ["gemma2", "gpt_neox"])
def test_the_forward_pass_is_the_models_own(kind: str) -> None:
    model, rows = made(kind).bfloat16(), batch()
    before = model(rows["input_ids"]).logits
    with collect(model, norm_offset=offset(kind)):
        assert torch.equal(model(rows["input_ids"]).logits, before)


def test_bfloat16_is_summed_in_float32() -> None:
    """A model of bfloat16 values: its scores against those of the same values computed in float32."""
    model, rows = made("gemma2").bfloat16(), batch()
    low = measured(model, rows, norm_offset=1.0)
    high = measured(model.float(), rows, norm_offset=1.0)
    assert all(score.tiles.dtype == torch.float32 for score in low.values())
    totals = torch.tensor([[low[name].total, high[name].total] for name in high])
    assert ((totals[:, 0] - totals[:, 1]).abs() / totals[:, 1]).max() < 0.05


@pytest.mark.parametrize("module", [nn.Conv1d(2, 2, 1), nn.PReLU(), nn.Bilinear(2, 2, 2)])
def test_a_module_without_a_rule_is_refused(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=type(module).__name__), collect(nn.Sequential(module)):
        pass
