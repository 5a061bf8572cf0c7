"""The oracle is PEFT on the whole model: what it makes of a module must be what it makes of the stand-in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import preprocess_loraga
from peft.tuners.lora.config import LoraGAConfig
from tiny import batch, tiny

from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.initialisers import initialised

RANK = 4
MATRICES = ["q_proj", "o_proj", "up_proj", "down_proj", "lm_head"]
ALL = [*MATRICES, "embed_tokens"]


def theirs(how: str, alpha: float = 8.0, **more: Any) -> tuple[Any, Any]:
    """The model as PEFT leaves it, on linear modules alone, where none of its initialisers falls back."""
    model = tiny("llama")
    config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=MATRICES, init_lora_weights=how, **more)
    if how == "lora_ga":
        preprocess_loraga(model, config, lambda: model(**batch()).loss.backward())
    return get_peft_model(model, config), config


def product(start: adapters.Start) -> torch.Tensor:
    return start[0] @ start[1]


@pytest.mark.parametrize(
    ("how", "more"), [("pissa", {}), ("olora", {}), ("lora_ga", {"lora_ga_config": LoraGAConfig()})]
)
def test_a_start_is_what_peft_makes_of_the_module(how: str, more: dict[str, Any]) -> None:
    """Factor by factor and up to signs, which a decomposition may choose."""
    right, _ = theirs(how, **more)
    ours = initialised(tiny("llama"), ALL, how, rank=RANK, alpha=8.0, batches=[batch()])
    for name, layer in adapters.lora_layers(right).items():
        for found, factor in zip(ours[name], adapters.factors_of(layer), strict=True):
            wanted = factor.detach()
            assert float((found.abs() - wanted.abs()).norm() / wanted.norm()) < 2e-2, name  # LoRA-GA's own is random
            assert float(wanted.norm()) > 0.01


def test_pissas_random_projections_lose_little_of_its_exact_start() -> None:
    model = tiny("llama")
    for name, start in initialised(model, MATRICES, "pissa_niter_16", rank=RANK, alpha=8.0, batches=[]).items():
        weight = model.get_submodule(name).weight.detach()
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        best = weight - (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
        assert float((weight - 2 * product(start)).norm() / best.norm()) < 1.01, name  # alpha / r = 2


def test_an_embedding_starts_as_a_matrix_does_not_as_plain_lora() -> None:
    model = tiny("llama")
    for how in ("pissa", "olora"):
        start = initialised(model, ALL, how, rank=RANK, alpha=float(RANK), batches=[])["model.embed_tokens"]
        weight = model.get_input_embeddings().weight.detach()
        assert start[0].shape == (weight.shape[0], RANK) and start[1].shape == (RANK, weight.shape[1])
        if how == "pissa":
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            assert torch.allclose(product(start), (u[:, :RANK] * s[:RANK]) @ vh[:RANK], atol=1e-4)
        else:
            q, r = torch.linalg.qr(weight)
            assert torch.allclose(product(start), q[:, :RANK] @ r[:RANK], atol=1e-4)


def test_lora_ga_takes_the_gradient_of_the_embedding_too() -> None:
    model = tiny("llama")
    start = initialised(model, ["embed_tokens"], "lora_ga", rank=RANK, alpha=8.0, batches=[batch()])
    model.get_input_embeddings().weight.requires_grad_(True)
    model(**batch()).loss.backward()
    u, _, vh = torch.linalg.svd(model.get_input_embeddings().weight.grad, full_matrices=False)
    b0, a0 = start["model.embed_tokens"]  # B has the second r directions, A the first (PEFT's ArB2r)
    assert torch.linalg.matrix_norm(a0 @ vh[:RANK].T, 2) == pytest.approx(1.0, abs=1e-3)
    assert float(torch.linalg.svdvals(vh[:RANK] @ a0.T).min()) > 0.99
    assert float((u[:, :RANK].T @ b0).norm() / b0.norm()) < 0.05


def test_orthogonal_starts_away_from_zero_and_multiplies_to_nothing() -> None:
    for b0, a0 in initialised(tiny("llama"), ALL, "orthogonal", rank=RANK, alpha=8.0, batches=[]).values():
        assert float(b0.norm()) > 0.1 and float(a0.norm()) > 0.1
        assert float((b0 @ a0).norm()) < 1e-5


def test_eva_has_pefts_directions_and_leaves_embeddings_out() -> None:
    config = LoraConfig(
        r=RANK, target_modules=MATRICES, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0), task_type="CAUSAL_LM"
    )
    right = get_peft_model(tiny("llama"), config)
    initialize_lora_eva_weights(right, [batch()], show_progress_bar=False)
    ours = initialised(tiny("llama"), ALL, "eva", rank=RANK, alpha=8.0, batches=[batch()])
    assert "model.embed_tokens" not in ours
    for name, layer in adapters.lora_layers(right).items():
        wanted = adapters.factors_of(layer)[1].detach()
        spread = torch.linalg.svdvals(
            torch.nn.functional.normalize(wanted) @ torch.nn.functional.normalize(ours[name][1]).T
        )
        assert float(spread.min()) > 0.999, name
        assert float(ours[name][0].norm()) == 0.0


def test_eva_with_too_few_tokens_is_told_in_place_of_a_wait_for_ever() -> None:
    few = {name: tensor[:1, :6] for name, tensor in batch().items()}
    with pytest.raises(UserError, match=r"rank: eva looks for 16 directions among 4 answer tokens"):
        initialised(tiny("llama"), MATRICES, "eva", rank=16, alpha=8.0, batches=[few])


def test_the_model_stays_as_it_was() -> None:
    model = tiny("llama")
    before, wanted = copy.deepcopy(model.state_dict()), {name: p.requires_grad for name, p in model.named_parameters()}
    for how in ("pissa", "olora", "orthogonal", "eva", "lora_ga"):
        initialised(model, ALL, how, rank=RANK, alpha=8.0, batches=[batch()])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert not any(hasattr(module, "_peft_loraga_grad") for module in model.modules())


def test_a_tied_head_has_a_gradient_of_its_own() -> None:
    model = tiny("llama-tied")
    starts = initialised(model, ["embed_tokens", "lm_head"], "lora_ga", rank=RANK, alpha=8.0, batches=[batch()])
    embedding, head = (starts[name][1] for name in ("model.embed_tokens", "lm_head"))
    assert float(torch.linalg.svdvals(embedding @ head.T).min()) < 0.99  # other directions
    assert model.lm_head.weight is model.get_input_embeddings().weight
