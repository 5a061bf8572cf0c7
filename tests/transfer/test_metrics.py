"""Each metric against its definition: every gradient and every input of every parameter, formed whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from test_sensitivity import brute_force, distance, made, offset
from tiny import batch
from torch import Tensor, nn

from orchestrator.transfer.metrics import IntegratedGradients, SensitivityMetric
from orchestrator.transfer.moments import collect_inputs, from_weights
from orchestrator.transfer.scores import Scores
from orchestrator.transfer.sensitivity import collect, example_losses

parse = TypeAdapter[Any](SensitivityMetric).validate_python
KINDS = ["llama", "llama-tied", "qwen2", "qwen3-tied", "gemma2", "gemma3_text", "phi3", "gpt_neox"]


def gradients(model: nn.Module, rows: dict[str, Tensor], fraction: float = 1.0) -> list[dict[str, Tensor]]:
    """Each example's gradients at the parameters times `fraction`, in float64."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = []
    for p in model.parameters():
        p.data.mul_(fraction)
    for row in range(len(rows["input_ids"])):
        model.zero_grad()
        model(**{name: tensor[row : row + 1] for name, tensor in rows.items()}).loss.backward()
        found.append({name: p.grad.double() for name, p in model.named_parameters()})
    for name, p in model.named_parameters():
        p.data.copy_(kept[name])
    model.zero_grad()
    return found


def fisher(model: nn.Module, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    each = gradients(model, rows)
    return {name: torch.stack([example[name] for example in each]).square().sum(0) for name in each[0]}


def integrated(model: nn.Module, rows: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    at = [gradients(model, rows, (k - 0.5) / steps) for k in range(1, steps + 1)]
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for example in range(len(at[0])):
        for name, p in model.named_parameters():
            mean = torch.stack([point[example][name] for point in at]).mean(0)
            total[name] += (p.detach().double() * mean).abs()
    return total


def measured(
    model: nn.Module, rows: dict[str, Tensor], metric: Any, kind: str, *, step: int = 5, granularity: int = 1
) -> dict[str, Scores]:
    with collect(model, metric=metric, granularity=granularity, norm_offset=offset(kind)) as scores:
        for first in range(0, len(rows["input_ids"]), step):
            part = {name: metric.repeat(tensor[first : first + step]) for name, tensor in rows.items()}
            labels = part.pop("labels")
            example_losses(model(**part).logits, labels).sum().backward()
    return scores


def furthest(scores: dict[str, Scores], right: dict[str, Tensor]) -> float:
    assert set(scores) == set(right)
    return max(distance(scores[name].tiles, right[name]) for name in right)


def assert_sums(scores: dict[str, Scores], right: dict[str, Tensor]) -> None:
    """At a granularity above 1: tiles, rows and columns are sums of the exact scores."""
    for name, score in scores.items():
        exact, g = right[name], score.granularity
        if exact.ndim == 1:
            assert distance(score.tiles, exact) < 4e-6
            continue
        tiles = torch.stack([part.sum(0) for part in exact.split(g)])
        tiles = torch.stack([part.sum(1) for part in tiles.split(g, 1)], 1)
        assert distance(score.tiles, tiles) < 4e-6
        assert distance(score.rows, exact.sum(1)) < 4e-6
        assert distance(score.cols, exact.sum(0)) < 4e-6


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_is_the_sum_of_squared_gradients(kind: str) -> None:
    model, rows = made(kind), batch()
    right = fisher(model, rows)
    assert furthest(measured(model, rows, parse("fisher"), kind), right) < 4e-6
    assert_sums(measured(model, rows, parse("fisher"), kind, granularity=24), right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [3, 8])
def test_integrated_gradients_follow_the_parameters_from_zero(kind: str, steps: int) -> None:
    model, rows = made(kind), batch()
    metric = parse({"kind": "integrated_gradients", "steps": steps})
    right = integrated(model, rows, steps)
    assert furthest(measured(model, rows, metric, kind), right) < 4e-6
    assert_sums(measured(model, rows, metric, kind, granularity=24), right)


def test_one_step_looks_at_half_the_parameters() -> None:
    """Guards the test above: the score is another one than Taylor's, and the midpoint is what makes it so."""
    model, rows = made("llama"), batch()
    found = measured(model, rows, IntegratedGradients(steps=1), "llama")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert distance(found[name].tiles, integrated(model, rows, 1)[name]) < 4e-6
    assert distance(found[name].tiles, brute_force(model, rows)[name]) > 0.1


def test_scores_add_up_to_the_loss_they_explain() -> None:
    """Completeness, the axiom behind the method: Σ θ·mean gradient is the loss at θ minus the loss at 0.

    Of one example and one sign, |·| drops out: so of a model of a single positive weight a row.
    """
    weights = torch.rand(7, 1, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(1, 7, bias=False))
    model[0].weight.data.copy_(weights)
    metric = IntegratedGradients(steps=64)
    with collect(model, metric=metric) as scores:
        (model(metric.repeat(torch.ones(1, 1, 1, requires_grad=True))) ** 3).sum().backward()
    assert torch.allclose(scores["0.weight"].tiles, weights**3, rtol=2e-4)  # the midpoint rule's own error


@pytest.mark.parametrize("metric", ["fisher", "integrated_gradients"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_any_micro_batch_gives_the_same_scores(metric: str, step: int) -> None:
    model, rows, chosen = made("qwen3-tied"), batch(), parse(metric)
    whole = measured(model, rows, chosen, "qwen3-tied")
    parts = measured(model, rows, chosen, "qwen3-tied", step=step)
    assert furthest(parts, {name: score.tiles.double() for name, score in whole.items()}) < 4e-6


def test_integrated_gradients_with_recomputed_activations() -> None:
    model, rows, metric = made("gemma2"), batch(), IntegratedGradients(steps=2)
    right = integrated(model, rows, 2)
    model.train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert furthest(measured(model, rows, metric, "gemma2"), right) < 4e-6


def test_a_batch_that_does_not_repeat_its_examples_is_refused() -> None:
    model, rows = made("llama"), batch()
    with pytest.raises(ValueError, match="5 rows doesn't hold every example 8 times"):
        with collect(model, metric=IntegratedGradients()):
            model(rows["input_ids"])


def alone(model: nn.Module, rows: dict[str, Tensor], modules: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into modules and what comes out, one example and so no padding at a time, tokens first."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_hook(
            lambda module, args, y, name=name: found[name].append((args[0].flatten(0, -2), y.flatten(0, -2)))
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
            model(ids[mask.bool()][None])
    for hook in hooks:
        hook.remove()
    return {name: tuple(torch.cat(side).double() for side in zip(*parts, strict=True)) for name, parts in found.items()}


def moments_of(model: nn.Module, rows: dict[str, Tensor], kind: str, step: int = 5) -> dict[str, Tensor]:
    with torch.no_grad(), collect_inputs(model, norm_offset=offset(kind)) as moments:
        for first in range(0, len(rows["input_ids"]), step):
            some = slice(first, first + step)
            model(rows["input_ids"][some], attention_mask=rows["attention_mask"][some])
    return moments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, 5])
def test_wanda_is_weight_times_norm_of_input(kind: str, step: int) -> None:
    model, rows = made(kind), batch()
    moments = moments_of(model, rows, kind, step)
    names = {id(p): name for name, p in model.named_parameters()}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for module, (x, _) in alone(model, rows, linears).items():
        weight, moment = linears[module].weight.detach(), moments[names[id(linears[module].weight)]]
        right = weight.double().abs() * x.norm(dim=0)
        assert distance(from_weights(weight, moment).tiles, right) < 4e-6
        assert_sums({module: from_weights(weight, moment, 24)}, {module: right})
    assert set(moments) == set(names.values())


def test_wanda_counts_the_tokens_of_an_embedding_and_a_bias() -> None:
    model, rows = made("gpt_neox"), batch()
    moments, real = moments_of(model, rows, "gpt_neox"), rows["input_ids"][rows["attention_mask"].bool()]
    table = model.gpt_neox.embed_in.weight.detach()
    counts = torch.tensor([[float((real == token).sum())] for token in range(len(table))])
    right = table.double().abs() * counts.double().sqrt()
    assert distance(from_weights(table, moments["gpt_neox.embed_in.weight"]).tiles, right) < 1e-6
    bias = model.gpt_neox.layers[0].attention.dense.bias.detach()
    found = from_weights(bias, moments["gpt_neox.layers.0.attention.dense.bias"])
    assert distance(found.tiles, bias.double().abs() * len(real) ** 0.5) < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "olmo2", "gpt_neox", "qwen3-tied"])
@pytest.mark.parametrize("width", [14, 4])  # 4: as many tokens as there are heads
def test_wanda_takes_a_norms_normalised_input(kind: str, width: int) -> None:
    """Where no weight of the norm is nothing, x̂ is its output without weight, offset and bias."""
    model, rows = made(kind), batch(2, width)
    norms = {name: module for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    for norm in norms.values():
        norm.weight.data.abs_().add_(0.5)
    moments = moments_of(model, rows, kind)
    for name, (_, y) in alone(model, rows, norms).items():
        weight, bias = norms[name].weight.detach().double(), getattr(norms[name], "bias", torch.zeros(()))
        x = (y - bias.detach().double()) / (offset(kind) + weight)
        assert distance(moments[f"{name}.weight"], x.square().sum(0)) < 4e-6


def test_wanda_sees_nothing_of_padding() -> None:
    model, rows = made("qwen3-tied"), batch()
    before = moments_of(model, rows, "qwen3-tied")
    padding = rows["attention_mask"] == 0
    other = {**rows, "input_ids": rows["input_ids"].masked_fill(padding, 55)}
    after = moments_of(model, other, "qwen3-tied")
    assert all(torch.equal(after[name], before[name]) for name in before)
    unmasked = moments_of(model, {**rows, "attention_mask": torch.ones_like(padding)}, "qwen3-tied")
    assert not torch.allclose(unmasked["model.norm.weight"], before["model.norm.weight"], rtol=1e-2)


def test_a_pass_with_an_empty_mask_adds_nothing() -> None:
    model, rows = made("llama"), batch()
    with torch.no_grad(), collect_inputs(model) as moments:
        model(rows["input_ids"], torch.zeros_like(rows["attention_mask"]))
    assert all(int(moment.count_nonzero()) == 0 for moment in moments.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("granularity", [1, 24])
def test_magnitude_is_the_weight_alone(granularity: int) -> None:
    model = made("qwen2").bfloat16()
    right = {name: p.detach().double().abs() for name, p in model.named_parameters()}
    scores = {name: from_weights(p.detach(), None, granularity) for name, p in model.named_parameters()}
    if granularity == 1:
        assert furthest(scores, right) < 1e-6
    else:
        assert_sums(scores, right)


def test_a_tall_matrix_is_scored_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, moments = torch.randn(70, 33, generator=generator), torch.rand(33, generator=generator)
    monkeypatch.setattr("orchestrator.transfer.moments.SLAB", 33 * 17)
    right = weight.double().abs() * moments.double().sqrt()
    assert distance(from_weights(weight, moments).tiles, right) < 1e-6
    assert_sums({"a": from_weights(weight, moments, 8)}, {"a": right})


def test_a_metric_is_its_own_configuration() -> None:
    assert parse("integrated_gradients") == IntegratedGradients(steps=8)
    for wrong in ("hessian", {"kind": "taylor", "steps": 2}, {"kind": "integrated_gradients", "steps": 0}):
        with pytest.raises(ValidationError):
            parse(wrong)
