"""`pkt widen`, and `pkt export --pack`, as a user has them: what is written, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from test_bad_input import Call
from test_bad_input import pkt as call
from updates import lora_of

from orchestrator.models import adapters
from orchestrator.models.loading import load, load_tokenizer

__all__ = ["call"]


def test_a_wide_model_and_its_lora_say_what_the_narrow_ones_do(
    call: Call, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    student = str(demo_models["demo-student"])
    lora = lora_of(load(student), tmp_path / "lora", target_modules=["q_proj", "down_proj", "lm_head"])
    status, told, _ = call("widen", "demo-student", "wide", "--times", "2", "--adapter", "lora")
    assert status == 0 and "2 times as wide, with the same logits\n" in told
    ids = torch.arange(5, 60).view(1, -1)
    wide = load(str(tmp_path / "wide"), dtype="float32")
    assert load_tokenizer(str(tmp_path / "wide")).get_vocab() == load_tokenizer(student).get_vocab()
    with torch.no_grad():
        torch.testing.assert_close(wide(ids).logits, load(student)(ids).logits, rtol=1e-3, atol=1e-3)
        own, found = (
            PeftModel.from_pretrained(model, str(folder)).eval()(ids).logits
            for model, folder in ((load(student), lora), (wide, tmp_path / "wide-lora"))
        )
    torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)
    config = json.loads((tmp_path / "wide-lora/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "wide")


def test_what_can_not_be_widened_is_told(call: Call, demo_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, message in (
        (["demo-student", "full"], "widen: full exists and is not empty"),
        (["nothing", "new"], "model: 'nothing' is no alias"),
        (["demo-student", "new", "--adapter", "nowhere"], "adapter: nowhere is no folder"),
        (["demo-student", "new", "--adapter", "full"], "adapter: "),
    ):
        status, _, error = call("widen", *words)
        assert status == 2 and message in error and not (tmp_path / "new").exists()


def test_a_pack_becomes_the_lora_again(call: Call, demo_models: dict[str, Path], tmp_path: Path) -> None:
    model = load(str(demo_models["demo-student"]))
    lora = lora_of(model, tmp_path / "lora", target_modules=["q_proj", "lm_head"])
    status, told, error = call("export", "lora", "--pack", "pack", "--energy", "1", "--bits", "32")
    assert status == 0 and "relative error of the update" in told, error
    status, told, _ = call("export", "pack", "--lora", "again", "--json")
    assert status == 0 and json.loads(told)["written"]["lora"]["modules"] == 5
    own, found = (adapters.read_update(folder) for folder in (lora, tmp_path / "again"))
    for name, (b, a) in own.items():
        torch.testing.assert_close(found[name][0] @ found[name][1], b @ a, rtol=1e-4, atol=1e-4)


def test_packs_that_can_not_be_are_told(call: Call, demo_models: dict[str, Path], tmp_path: Path) -> None:
    model = load(str(demo_models["demo-student"]))
    lora_of(model, tmp_path / "head", target_modules=["lm_head"])
    lora_of(load(str(demo_models["demo-student"])), tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    assert call("export", "head", "--pack", "pack")[0] == 0
    for words, message in (
        (["head", "--pack", "new", "--bits", "8,3"], "bits: '3' is none of 2, 4, 8, 32"),
        (["head", "--pack", "new", "--prune"], "prune: the adapter changes embedding and head alone"),
        (["dora", "--pack", "new"], "pack: the adapter has use_dora = True; only plain LoRA is compressed"),
        (["pack", "--merged", "new"], "source: pack is a pack, which becomes a LoRA again"),
    ):
        status, _, error = call("export", *words)
        assert status == 2 and message in error and not (tmp_path / "new").exists()
