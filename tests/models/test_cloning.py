"""A model that is widened says what it said, of every family; and so does one with its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import FAMILIES, batch, saved
from updates import lora_of

from orchestrator.models import adapters
from orchestrator.models.cloning import widen, widen_adapter
from orchestrator.models.families import FAMILIES as ROWS
from orchestrator.models.families import Geometry
from orchestrator.models.loading import load


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wider_model_says_the_same(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "narrow", family)
    ids = {name: tensor for name, tensor in batch().items() if name != "labels"}
    names = {name.rsplit(".", 1)[-1] for name in ROWS[model.config.model_type].roles.values()}
    plain = [*names, ROWS[model.config.model_type].module("embed", None).rsplit(".", 1)[-1]]
    with torch.no_grad():
        wanted = model(**ids).logits
    facts = widen(str(tmp_path / "narrow"), tmp_path / "wide", 3)
    lora_of(model, tmp_path / "lora", target_modules=plain)
    wide = load(str(tmp_path / "wide"))
    assert facts["parameters"] == sum(parameter.numel() for parameter in wide.parameters())
    assert (
        Geometry.of(wide.config).hidden == 3 * 64
        and Geometry.of(wide.config).head_dim == Geometry.of(load(str(tmp_path / "narrow")).config).head_dim
    )
    with torch.no_grad():
        torch.testing.assert_close(wide(**ids).logits, wanted, rtol=1e-4, atol=1e-4)
    (tmp_path / "wide-lora").mkdir()
    stock = load(str(tmp_path / "narrow"))
    widen_adapter(tmp_path / "lora", tmp_path / "wide-lora", stock.config, 3, "wide")
    with torch.no_grad(), adapters.without_own_warnings():
        own = PeftModel.from_pretrained(stock, str(tmp_path / "lora")).eval()(**ids).logits
        found = PeftModel.from_pretrained(wide, str(tmp_path / "wide-lora")).eval()(**ids).logits
    assert float((own - wanted).abs().max()) > 0.1
    torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)


def test_thirds_are_rounded_in_a_narrow_type_and_that_is_said(tmp_path: Path) -> None:
    saved(tmp_path / "narrow", "llama").bfloat16().save_pretrained(tmp_path / "narrow")
    exact = [widen(str(tmp_path / "narrow"), tmp_path / str(times), times)["exact"] for times in (2, 3)]
    assert exact == [True, False]
    narrow = load(str(tmp_path / "narrow"), dtype="float32").model.layers[0].mlp.up_proj.weight
    for times, right in ((2, True), (3, False)):
        wide = load(str(tmp_path / str(times)), dtype="float32").model.layers[0].mlp.up_proj.weight
        assert torch.equal(wide[:160, :64] * times, narrow) is right
