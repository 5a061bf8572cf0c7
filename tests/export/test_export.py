"""Oracles: plain transformers and PEFT on what was written, full matrices and their decompositions, lm-eval itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, batch, saved
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.export.export import merge, write_lora
from orchestrator.export.merging import untie
from orchestrator.export.source import Source
from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES as ROWS
from orchestrator.models.loading import resolve

R = 6
WEIGHTS = "adapter_model.safetensors"


def adapter_of(student: Path, folder: Path, *, rank: int = R, **more: Any) -> Source:
    """A LoRA with random factors on everything that the product adapts, at a scale that isn't 1."""
    model = AutoModelForCausalLM.from_pretrained(student)
    settings = {"target_modules": ROWS[model.config.model_type].targets, "lora_alpha": 1.5 * rank} | more
    peft_model = get_peft_model(model, LoraConfig(r=rank, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapters.save(peft_model, folder, str(student))
    return Source(folder, str(student), "a test's", {"student": str(student)})


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(batch()["input_ids"]).logits.float()


def updates(folder: Path) -> dict[str, Tensor]:
    """Every module's update as a matrix, by PEFT's rules and without its code."""
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / WEIGHTS)
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    found = {}
    for key, tensor in tensors.items():
        if ".lora_A." in key:
            found[key.split(".lora_A")[0]] = scale * tensors[key.replace("lora_A", "lora_B")].double() @ tensor.double()
        elif key.endswith(".lora_embedding_A"):
            other = tensors[key.replace("embedding_A", "embedding_B")].double()
            found[key.split(".lora_emb")[0]] = scale * (other @ tensor.double()).T
    return {name.removeprefix("base_model.model."): update for name, update in found.items()}


@pytest.mark.filterwarnings("error:Input and output embeddings")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_computes_what_the_adapter_does(family: str, tmp_path: Path) -> None:
    stock = saved(tmp_path / "student", family)
    source = adapter_of(tmp_path / "student", tmp_path / "adapter")
    told = merge(source, resolve(source.student, "student"), tmp_path / "merged")
    before = logits(stock)
    want = logits(PeftModel.from_pretrained(stock, str(tmp_path / "adapter")))
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading.values())
    assert float((want - before).abs().max()) > 0.1
    assert float((logits(model) - want).abs().max()) < 1e-5 * max(1.0, float(want.abs().max()))
    assert told["untied"] == bool(stock.config.tie_word_embeddings)
    assert model.config.tie_word_embeddings is False
    theirs, ours = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("student", "merged"))
    assert ours("Backwards: abc\n").input_ids == theirs("Backwards: abc\n").input_ids
    card = (tmp_path / "merged/README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert "PeftModel" not in card


def test_a_tied_student_stays_tied_where_neither_end_is_adapted(tmp_path: Path) -> None:
    stock = saved(tmp_path / "student", "qwen3-tied")
    source = adapter_of(tmp_path / "student", tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    assert merge(source, resolve(source.student, "student"), tmp_path / "merged")["untied"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight
    want = logits(PeftModel.from_pretrained(stock, str(tmp_path / "adapter")))
    assert float((logits(model) - want).abs().max()) < 1e-5 * float(want.abs().max())


@pytest.mark.parametrize(("ends", "needed"), [(["embed_tokens", "lm_head"], True), (["lm_head"], True), ([], False)])
def test_an_untied_student_is_the_same_and_can_be_tied_anew(ends: list[str], needed: bool, tmp_path: Path) -> None:
    """lm-eval ties a student's weights once the adapter is on it, and PEFT's layer of a tied head doesn't let it."""
    stock = saved(tmp_path / "student", "llama-tied")
    adapter_of(tmp_path / "student", tmp_path / "adapter", target_modules=["q_proj", *ends])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tied = PeftModel.from_pretrained(stock, str(tmp_path / "adapter"))
    want = logits(tied)
    assert untie(model, tmp_path / "adapter") is needed
    model.save_pretrained(tmp_path / "untied")
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "untied"), str(tmp_path / "adapter")
    )
    loaded.tie_weights()
    assert torch.equal(logits(loaded), want)
    if needed:
        with pytest.raises(KeyError, match="already exists"):  # once PEFT or transformers can, no copy is needed
            tied.tie_weights()


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_students_dtype_is_kept_and_rounded_to_once(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved(tmp_path / "float", family).to(dtype).save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(tmp_path / "float").save_pretrained(tmp_path / "student")
    source = adapter_of(tmp_path / "student", tmp_path / "adapter")
    told = merge(source, resolve(source.student, "student"), tmp_path / "merged")
    assert told["dtype"] == str(dtype).removeprefix("torch.")
    stock, model = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("student", "merged"))
    assert model.dtype == dtype
    for name, update in updates(tmp_path / "adapter").items():
        want = stock.get_submodule(name).weight.double() + update
        got = model.get_submodule(name).weight.double()
        half = torch.finfo(dtype).eps / 2 * want.abs()  # of the last place: what one rounding may cost
        assert bool(((got - want).abs() <= 1.001 * half + 1e-6).all()), name


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}])
@pytest.mark.parametrize("rank", [1, 4, R])
def test_the_error_told_is_that_of_the_full_matrices_and_the_least_there_is(
    rank: int, more: dict[str, Any], tmp_path: Path
) -> None:
    stock = saved(tmp_path / "student", "llama")
    source = adapter_of(tmp_path / "student", tmp_path / "adapter", **more)
    told = write_lora(source, tmp_path / "small", rank)
    full, small = updates(tmp_path / "adapter"), updates(tmp_path / "small")
    assert full.keys() == small.keys()
    assert {"model.embed_tokens", "lm_head"} < full.keys()
    lost = {name: float((full[name] - small[name]).square().sum()) for name in full}
    energy = {name: float(full[name].square().sum()) for name in full}
    assert told["error"] == pytest.approx((sum(lost.values()) / sum(energy.values())) ** 0.5, abs=1e-6)
    assert told["energy_kept"] == pytest.approx(1 - sum(lost.values()) / sum(energy.values()), abs=1e-6)
    by_module = {name: (lost[name] / energy[name]) ** 0.5 for name in full}
    assert told["worst_error"] == pytest.approx(max(by_module.values()), abs=1e-6)
    assert by_module[told["worst_module"]] == pytest.approx(max(by_module.values()), abs=1e-6)
    for name, update in full.items():
        least = torch.linalg.svdvals(update)[rank:].square().sum().sqrt()
        assert lost[name] ** 0.5 == pytest.approx(float(least), abs=1e-5), name
        assert torch.linalg.matrix_rank(small[name], rtol=1e-5) <= rank
    loaded = PeftModel.from_pretrained(stock, str(tmp_path / "small"))
    assert loaded.peft_config["default"].r == rank
    got = logits(loaded)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        for name, update in small.items():
            model.get_submodule(name).weight += update.float()
    want = logits(model)
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())
    assert f"{told['error']:.3g} of the update" in (tmp_path / "small/README.md").read_text()


@pytest.mark.parametrize("trained", [True, False])
def test_an_update_of_half_the_rank_loses_nothing(trained: bool, tmp_path: Path) -> None:
    """The form of every arm that starts away from zero: halves that cancel, of which one has moved in B alone."""
    saved(tmp_path / "student", "llama")
    source = adapter_of(tmp_path / "student", tmp_path / "adapter", rank=2 * R)
    tensors = load_file(source.folder / WEIGHTS)
    generator = torch.Generator().manual_seed(5)
    for key, tensor in tensors.items():
        up = "lora_B" in key or "embedding_A" in key
        moved = 1e-3 * torch.randn(tensor.shape, generator=generator) if up and trained else torch.zeros_like(tensor)
        wide = tensor.shape[1] == 2 * R
        first, moved = (tensor[:, :R], moved[:, :R]) if wide else (tensor[:R], moved[:R])
        tensors[key] = torch.cat([first + moved, -first if up else first], 1 if wide else 0)
    save_file(tensors, source.folder / WEIGHTS)
    told = write_lora(source, tmp_path / "small", R)
    full, small = updates(tmp_path / "adapter"), updates(tmp_path / "small")
    assert told["error"] < 1e-6
    assert told["worst_error"] < 1e-6
    assert told["energy_kept"] == pytest.approx(1)
    for name, update in full.items():
        assert float((small[name] - update).norm()) <= 1e-6 * float(update.norm()) + 1e-12, name
        assert (float(update.norm()) > 1e-3) == trained


def test_a_rank_above_a_small_matrix_is_filled_up_with_zeros(tmp_path: Path) -> None:
    stock = saved(tmp_path / "student", "llama")
    source = adapter_of(tmp_path / "student", tmp_path / "adapter", rank=48, target_modules=["k_proj", "up_proj"])
    told = write_lora(source, tmp_path / "small", 40)  # k is 32 x 64
    assert told["worst_module"].endswith("up_proj")
    PeftModel.from_pretrained(stock, str(tmp_path / "small"))
    full, small = updates(tmp_path / "adapter"), updates(tmp_path / "small")
    name = "model.layers.0.self_attn.k_proj"
    assert float((full[name] - small[name]).norm() / full[name].norm()) < 1e-6


def test_the_lora_as_it_is(tmp_path: Path) -> None:
    stock = saved(tmp_path / "student", "llama")
    source = adapter_of(tmp_path / "student", tmp_path / "adapter")
    assert write_lora(source, tmp_path / "same", None) == {"folder": str(tmp_path / "same"), "rank": R}
    assert (tmp_path / "same" / WEIGHTS).read_bytes() == (source.folder / WEIGHTS).read_bytes()
    want = logits(PeftModel.from_pretrained(stock, str(source.folder)))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert torch.equal(logits(PeftModel.from_pretrained(again, str(tmp_path / "same"))), want)


def test_an_alias_is_told_by_its_hub_id(tmp_path: Path) -> None:
    saved(tmp_path / "student", "llama")
    made = adapter_of(tmp_path / "student", tmp_path / "adapter")
    source = Source(made.folder, "llama2-7b", "a test's", {"student": "llama2-7b"})
    for name, rank in (("same", None), ("small", 2)):
        write_lora(source, tmp_path / name, rank)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "meta-llama/Llama-2-7b-hf"
        assert 'from_pretrained("meta-llama/Llama-2-7b-hf")' in (tmp_path / name / "README.md").read_text()
