"""An update that was made elsewhere: what PEFT and two checkpoints say of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import saved
from updates import lora_of

from orchestrator.carry.update import adapter, difference, find_adapter
from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.loading import load, resolve

KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 12}},
    "all": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_what_peft_makes_of_it(kind: str, teacher: Path, tmp_path: Path) -> None:
    """Of any rank and alpha by module: by PEFT's own merged model, matrix by matrix."""
    folder = lora_of(load(str(teacher)), tmp_path / "lora", **KINDS[kind])
    found, _ = find_adapter(str(folder), resolve(str(teacher), "teacher"))
    (tmp_path / "step").mkdir()
    adapter(tmp_path / "step", adapter=found, teacher=str(teacher))
    stock = load(str(teacher)).state_dict()
    merged = PeftModel.from_pretrained(load(str(teacher)), str(folder)).merge_and_unload().state_dict()
    changed = adapters.read_update(tmp_path / "step")
    assert {f"{name}.weight" for name in changed} == {
        name for name, weight in merged.items() if not torch.equal(weight, stock[name])
    }
    for name, (b, a) in changed.items():
        assert torch.allclose(b @ a, merged[f"{name}.weight"] - stock[f"{name}.weight"], atol=1e-6), name


def test_its_contents_and_not_its_place_are_its_name(teacher: Path, tmp_path: Path) -> None:
    known = resolve(str(teacher), "teacher")
    first = lora_of(load(str(teacher)), tmp_path / "lora")
    (tmp_path / "copy").mkdir()
    for file in first.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    other = lora_of(load(str(teacher)), tmp_path / "other")
    names = [find_adapter(str(folder), known)[1] for folder in (first, tmp_path / "copy", other)]
    assert names[0] == names[1] != names[2]


def test_the_difference_of_two_checkpoints_is_cut_at_the_rank(teacher: Path, tmp_path: Path) -> None:
    """A LoRA that was merged comes back whole at its rank, and as its best part below it (NumPy's own SVD)."""
    folder = lora_of(load(str(teacher)), tmp_path / "lora")
    PeftModel.from_pretrained(load(str(teacher)), str(folder)).merge_and_unload().save_pretrained(tmp_path / "tuned")
    wanted = adapters.read_update(folder)
    for rank, exact in ((4, True), (2, False)):
        (tmp_path / str(rank)).mkdir()
        facts = difference(tmp_path / str(rank), tuned=str(tmp_path / "tuned"), base=str(teacher), rank=rank)
        found = adapters.read_update(tmp_path / str(rank))
        assert found.keys() == wanted.keys()
        kept = whole = 0.0
        for name, (b, a) in wanted.items():
            values = torch.linalg.svdvals((b @ a).double())
            kept, whole = kept + float(values[:rank].square().sum()), whole + float(values.square().sum())
            left = float((found[name][0] @ found[name][1] - b @ a).norm())
            assert left == pytest.approx(float(values[rank:].norm()), abs=1e-5)
        assert facts["kept"] == pytest.approx(kept / whole, abs=2e-4)
        assert (facts["kept"] > 0.9999) == exact
    with pytest.raises(UserError, match="doesn't differ"):
        difference(tmp_path / "2", tuned=str(teacher), base=str(teacher), rank=2)


def test_a_tied_heads_difference_is_the_embeddings(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "llama-tied", vocab_size=104)
    with torch.no_grad():
        base.model.embed_tokens.weight[:, :2] += 1.0
    base.save_pretrained(tmp_path / "tuned")
    (tmp_path / "step").mkdir()
    difference(tmp_path / "step", tuned=str(tmp_path / "tuned"), base=str(tmp_path / "base"), rank=2)
    found = adapters.read_update(tmp_path / "step")
    assert found.keys() == {"model.embed_tokens", "lm_head"}
    one, other = (b @ a for b, a in found.values())
    assert torch.allclose(one, other, atol=1e-5) and torch.allclose(one[:, :2], torch.ones(104, 2), atol=1e-4)


def edited(folder: Path, **config: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def filled(folder: Path, value: float) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: torch.full_like(tensor, value) for name, tensor in tensors.items()}, path)


def test_what_is_no_lora_of_this_teacher_is_refused(teacher: Path, tmp_path: Path) -> None:
    known = resolve(str(teacher), "teacher")

    def refused(name: str) -> str:
        with pytest.raises(UserError) as error:
            find_adapter(name, known)
        return str(error.value)

    assert "no folder and no hub id" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in refused(str(tmp_path / "empty"))
    dora = lora_of(load(str(teacher)), tmp_path / "dora", use_dora=True)
    assert "use_dora" in refused(str(dora))
    other = saved(tmp_path / "wide", "llama", vocab_size=104, intermediate_size=96)
    assert "its model.layers.0.mlp.down_proj is 64 x 96 and" in refused(str(lora_of(other, tmp_path / "lora-wide")))
    deep = saved(tmp_path / "deep", "llama", vocab_size=104, num_hidden_layers=4)
    assert "changes model.layers.3.mlp.down_proj, which" in refused(str(lora_of(deep, tmp_path / "lora-deep")))
    own = lora_of(load(str(teacher)), tmp_path / "own")
    edited(own, peft_type="IA3")
    assert "is IA3" in refused(str(own))
    for field, value, words in (
        ("init_lora_weights", "pissa_niter_4", "took its start (pissa_niter_4) from the base"),
        ("bias", "all", "bias all"), ("layer_replication", [[0, 2]], "layer_replication"),
    ):  # fmt: skip
        before = json.loads((own / "adapter_config.json").read_text()) | {"peft_type": "LORA"}
        edited(own, peft_type="LORA", **{field: value})
        assert words in refused(str(own))
        edited(own, **before)
    filled(own, float("nan"))
    assert "NaN" in refused(str(own))
    filled(own, 0.0)
    assert "changes nothing" in refused(str(own))
