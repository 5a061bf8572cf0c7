"""Oracles: PEFT itself and plain matrix arithmetic, on stock models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, batch, tiny

from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES as ROWS
from orchestrator.transfer.lowrank import truncated_svd

RANK = 4


def starts(model: Any) -> dict[str, adapters.Start]:
    """Random blocks for every adapted module: what an extraction would give."""
    found = {}
    generator = torch.Generator().manual_seed(5)
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ROWS[model.config.model_type].targets:
            block = truncated_svd(torch.randn(module.weight.shape, generator=generator), RANK)
            found[name] = (block.u * block.s, block.vh)
    return found


def attached(model: Any, *, alpha: float = RANK, dropout: float = 0.0, changes_base: bool = True, **more: Any) -> Any:
    targets = ROWS[model.config.model_type].targets
    given = more.get("starts", starts(model) if changes_base else {})
    return adapters.attach(
        model, targets, rank=RANK, alpha=alpha, dropout=dropout, changes_base=changes_base, starts=given
    )


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch()).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_changes_nothing_in_training_mode_too(family: str) -> None:
    rows = batch()["input_ids"]
    with torch.no_grad():
        before = tiny(family)(rows).logits
    model = attached(tiny(family), dropout=0.3).train().requires_grad_(False)
    assert float((model(rows).logits - before).abs().max()) < 1e-4
    first = starts(tiny(family))
    layer = adapters.lora_layers(model)
    name = ROWS[model.config.model_type].module("up", 1)
    up, down = adapters.factors_of(layer[name])
    assert torch.equal(up[:, :RANK], first[name][0])
    assert torch.equal(down[:RANK], first[name][1])


@pytest.mark.parametrize("family", ["llama", "qwen3-tied"])
@pytest.mark.parametrize("changes_base", [True, False])
def test_the_saved_adapter_gives_the_trained_logits_on_the_stock_student(
    family: str, changes_base: bool, tmp_path: Path
) -> None:
    from peft import PeftModel

    rows = batch()["input_ids"]
    model = attached(tiny(family), changes_base=changes_base, alpha=2 * RANK)
    train(model)
    adapters.save(model, tmp_path, "a-student")
    model.requires_grad_(False)
    stock = tiny(family).requires_grad_(False)
    untouched = stock(rows).logits
    trained = model.eval()(rows).logits
    loaded = PeftModel.from_pretrained(stock, str(tmp_path)).eval()(rows).logits.detach()
    assert float((trained - untouched).abs().max()) > 1e-2
    assert float((loaded - trained).abs().max()) < 1e-4
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 600_000  # the embeddings are not in it


def test_training_moves_the_live_half_alone() -> None:
    model = attached(tiny("llama"))
    before = {name: [f.detach().clone() for f in adapters.factors_of(layer)] for name, layer in layers(model)}
    train(model)
    for name, layer in layers(model):
        up, down = adapters.factors_of(layer)
        assert torch.equal(up[:, RANK:], before[name][0][:, RANK:]), name
        assert torch.equal(down[RANK:], before[name][1][RANK:]), name
        moved = (up[:, :RANK] - before[name][0][:, :RANK]).norm() + (down[:RANK] - before[name][1][:RANK]).norm()
        assert float(moved.detach()) > 0, name


def layers(model: Any) -> list[tuple[str, Any]]:
    return list(adapters.lora_layers(model).items())


def test_training_equals_the_same_update_written_into_the_base() -> None:
    """The paper's way, in float32 where it is exact: base minus B0·A0, and a plain LoRA that starts at (B0, A0)."""
    ours = attached(tiny("llama"))
    base = tiny("llama")
    given = starts(base)
    with torch.no_grad():
        for name, (b0, a0) in given.items():
            base.get_submodule(name).weight -= b0 @ a0
    theirs = attached(base, changes_base=False, starts=given)
    rows = batch()["input_ids"]
    with torch.no_grad():
        untouched = ours(rows).logits
    for model in (ours, theirs):  # by plain steps: Adam would turn the rounding of tiny gradients into whole ones
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            model(**batch()).loss.backward()
            optimizer.step()
    with torch.no_grad():
        assert float((ours(rows).logits - untouched).abs().max()) > 0.1
        assert float((ours(rows).logits - theirs(rows).logits).abs().max()) < 1e-3


def test_an_extracted_folder_loads_with_peft_and_adds_the_block(tmp_path: Path) -> None:
    from peft import PeftModel

    model = tiny("llama")
    given = starts(model)
    adapters.write_start(tmp_path, given, base_name="a-student", embeddings=frozenset({"model.embed_tokens"}))
    again = adapters.read_start(tmp_path)
    assert set(again) == set(given)
    assert all(torch.equal(again[name][half], given[name][half]) for name in given for half in (0, 1))
    loaded = PeftModel.from_pretrained(tiny("llama"), str(tmp_path))
    with torch.no_grad():
        for name, (b0, a0) in given.items():
            model.get_submodule(name).weight += b0 @ a0
    rows = batch()["input_ids"]
    model.requires_grad_(False)
    assert float((loaded(rows).logits - model(rows).logits).abs().max()) < 1e-3


def test_a_start_without_its_module_is_refused() -> None:
    wrong = {"model.layers.9.mlp.up_proj": (torch.ones(2, RANK), torch.ones(RANK, 2))}
    with pytest.raises(KeyError, match=r"layers\.9"):
        attached(tiny("llama"), starts=wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_into_the_weights_it_is_the_same_model_and_comes_out_again(family: str) -> None:
    """Outputs as with the adapter beside, tied matrices apart; afterwards every tensor is the one that it was."""
    model = tiny(family)
    worn = attached(model)
    train(worn)
    worn.eval()
    ids = batch()["input_ids"]
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in worn.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        beside = worn(ids).logits
        with adapters.folded(worn):
            within = worn(ids).logits
            assert float((within - beside).abs().max()) < 1e-4 * float(beside.abs().max())
            for layer in adapters.lora_layers(worn).values():
                assert layer.disable_adapters != isinstance(layer.base_layer, torch.nn.Embedding)
        assert torch.equal(worn(ids).logits, beside)
    after = worn.state_dict(keep_vars=True)
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == {name: at for name, (at, _) in before.items()}
    assert all(torch.equal(after[name], was) for name, (_, was) in before.items())


def test_what_was_learnt_in_float32_is_loaded_so_onto_a_narrow_student(tmp_path: Path) -> None:
    """What training added to a start is far smaller than the start: rounded to bfloat16 most of it would be gone."""
    model = attached(tiny("llama"), changes_base=True, alpha=2 * RANK)
    train(model)
    adapters.save(model, tmp_path, "a-student")
    worn = adapters.load_adapter(tiny("llama").bfloat16(), tmp_path)
    learnt, found = (adapters.lora_layers(one) for one in (model, worn))
    for name, layer in found.items():
        for own, other in zip(adapters.factors_of(layer), adapters.factors_of(learnt[name]), strict=True):
            assert torch.equal(own, other)


def test_what_rounding_would_change_is_not_folded() -> None:
    """In bfloat16 a sum of weight and adapter loses what the adapter has: outputs stay the very same bits."""
    worn = attached(tiny("llama").bfloat16(), changes_base=False)
    train(worn)
    ids = batch()["input_ids"]
    with torch.no_grad():
        beside = worn.eval()(ids).logits
        with adapters.folded(worn):
            assert torch.equal(worn(ids).logits, beside)
