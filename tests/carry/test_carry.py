"""An update that is carried over into a copy of the teacher does there what it did: whole models, real tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import saved
from torch import Tensor
from updates import carried, texts

from orchestrator.carry.carry import CARRIED
from orchestrator.models import adapters
from orchestrator.models.cloning import widen, widen_adapter
from orchestrator.models.families import FAMILIES, Geometry
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.tasks.template import encode

RANK = 3
SHARP = {"regularisation": 0.005}  # channels of tiny models are much alike


def turned(model: Any, folder: Path, *, exchanged: bool = False) -> Any:
    """The same function in other channels: the residual stream rotated, or its channels `exchanged`, norms folded away,
    neurons permuted.
    """
    other = load(str(folder), dtype="float64")
    draw = torch.Generator().manual_seed(7)
    hidden, ffn = other.config.hidden_size, other.config.intermediate_size
    turn = torch.linalg.qr(torch.randn(hidden, hidden, generator=draw, dtype=torch.float64)).Q
    if exchanged:
        turn = torch.eye(hidden, dtype=torch.float64)[torch.randperm(hidden, generator=draw)]
    with torch.no_grad():
        for layer in other.model.layers:
            attention, mlp, order = layer.self_attn, layer.mlp, torch.randperm(ffn, generator=draw)
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                for reader in readers:
                    reader.weight.copy_(reader.weight * norm.weight @ turn)
                norm.weight.fill_(1)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(turn.t() @ writer.weight)
            for rows in (mlp.gate_proj, mlp.up_proj):
                rows.weight.copy_(rows.weight[order])
            mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
        other.lm_head.weight.copy_(other.lm_head.weight * other.model.norm.weight @ turn)
        other.model.norm.weight.fill_(1)
        other.model.embed_tokens.weight.copy_(other.model.embed_tokens.weight @ turn)
    return other


@torch.no_grad()
def without_stretch(model: Any) -> None:
    """Norms without weights."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1)


def an_update(folder: Path, model: Any) -> None:
    """A random LoRA on every matrix, of a size that is seen in the logits."""
    draw, family, geometry = torch.Generator().manual_seed(5), FAMILIES["llama"], Geometry.of(model.config)
    names = {
        family.module(role, layer)
        for role in family.roles | family.outer
        for layer in ([None] if role in family.outer else range(geometry.layers))
    }
    starts = {}
    for name in sorted(names):
        n, m = model.get_submodule(name).weight.shape
        starts[name] = (0.2 * torch.randn(n, RANK, generator=draw), 0.2 * torch.randn(RANK, m, generator=draw))
    folder.mkdir()
    adapters.write_start(folder, starts, base_name="teacher", embeddings=frozenset({"model.embed_tokens"}), scale=0.5)


def logits(folder: Path, adapter: Path | None) -> Tensor:
    """Of texts that no map was made of."""
    model, tokenizer = load(str(folder), dtype="float64"), load_tokenizer(str(folder))
    rows = [encode(row, "plain", tokenizer, 100).ids for row in texts(60)[40:]]
    worn = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    with torch.no_grad():
        return torch.cat([worn(torch.tensor([ids])).logits[0] for ids in rows])


@pytest.mark.parametrize("kind", ["ridge", "ridge_bounded", "theseus", "theseus_stream", "theseus_scaled"])
def test_an_update_does_in_other_channels_what_it_did(kind: str, tmp_path: Path) -> None:
    """Loaded by plain PEFT onto the turned copy, the carried update gives the logits of the teacher with its own."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    model = saved(teacher, "llama", vocab_size=104).double()
    if kind != "ridge":  # a rotation can't undo what a norm's weights stretch
        without_stretch(model)
    model.save_pretrained(teacher)
    turned(model, teacher).save_pretrained(student)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student / name).write_bytes((teacher / name).read_bytes())
    an_update(tmp_path / "update", model)
    found = carried(tmp_path, teacher, student, {"kind": kind})
    plain, wanted, got = logits(teacher, None), logits(teacher, tmp_path / "update"), logits(student, found)
    torch.testing.assert_close(logits(student, None), plain, rtol=1e-5, atol=1e-5)  # norms are computed in float32
    assert float((wanted - plain).abs().max()) > 1
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    said = json.loads((found / CARRIED).read_text())
    assert len(said["modules"]) == 7 * 3 + 2 and said["layers"] == [[[0, 1.0]], [[1, 1.0]], [[2, 1.0]]]


@pytest.mark.parametrize("times", [2, 3])
def test_an_update_that_was_carried_up_by_widening_comes_back(times: int, tmp_path: Path) -> None:
    """As long as it was, in the embedding and the head too, where a rotation alone would keep the wide one's length."""
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    model = saved(student, "llama", vocab_size=104)
    without_stretch(model)
    model.save_pretrained(student)
    widen(str(student), teacher, times)
    an_update(tmp_path / "own", model)
    (tmp_path / "update").mkdir()
    widen_adapter(tmp_path / "own", tmp_path / "update", model.config, times, "teacher")
    found = carried(tmp_path, teacher, student, {"kind": "theseus_scaled"})
    plain, wanted, got = (logits(student, one) for one in (None, tmp_path / "own", found))
    assert float((wanted - plain).abs().max()) > 1
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("family", ["gemma2", "phi3", "gpt_neox", "qwen3-tied", "llama-tied"])
def test_a_copy_of_any_family_gets_the_update_itself(family: str, tmp_path: Path) -> None:
    """Scaled embeddings, shared matrices, tied heads: between a model and itself nothing is lost that it computes."""
    sizes = {"intermediate_size": 96, "max_position_embeddings": 128, "vocab_size": 104}
    model = saved(tmp_path / "model", family, **sizes)
    row = FAMILIES[family.split("-")[0]]
    names = {row.module(role, layer) for role in row.roles for layer in range(3)} | {row.outer["embed"]}
    draw, starts = torch.Generator().manual_seed(5), {}
    if family == "gpt_neox":  # beside attention: its first neurons see a token alone, and there are no more kinds of it
        names -= {row.module(role, 0) for role in ("up", "down")}
    for name in sorted(names):
        weight = model.get_submodule(name).weight.detach()
        b = torch.randn(len(weight), RANK, generator=draw)
        if name.endswith(
            ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
        ):  # what some input makes of them
            seen = torch.randn(weight.shape[1], RANK, generator=draw)
            if row.centred:
                norm = model.get_submodule(name.rsplit(".", 2)[0] + ".input_layernorm")
                seen = (seen - seen.mean(0)) * norm.weight.detach()[:, None]
            b = weight @ seen
        starts[name] = (0.1 * b, 0.1 * torch.randn(RANK, weight.shape[1], generator=draw))
    (tmp_path / "update").mkdir()
    adapters.write_start(tmp_path / "update", starts, base_name="model", embeddings=frozenset({row.outer["embed"]}))
    found = carried(tmp_path, tmp_path / "model", tmp_path / "model", {"kind": "ridge"})
    plain, wanted, got = (logits(tmp_path / "model", one) for one in (None, tmp_path / "update", found))
    assert float((wanted - plain).norm()) > 0.05 * float(plain.norm())
    assert float((got - wanted).norm()) < 1e-3 * float((wanted - plain).norm())


def test_weights_by_transport_make_a_permuted_copy_the_teacher(tmp_path: Path) -> None:
    """The student is the teacher of before, with its channels in another order; at a scale of 1 it is the teacher."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    model = saved(teacher, "llama", vocab_size=104).double()
    without_stretch(model)
    model.save_pretrained(teacher)
    turned(model, teacher, exchanged=True).save_pretrained(student)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student / name).write_bytes((teacher / name).read_bytes())
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.model.layers:
            matrix = layer.self_attn.q_proj  # and not of what writes: outputs that changed are like others' no more
            n, m = matrix.weight.shape
            matrix.weight.add_(0.02 * torch.randn(n, 2, generator=draw) @ torch.randn(2, m, generator=draw))
    model.save_pretrained(teacher)
    found = carried(tmp_path, teacher, student, {"kind": "transport_merge", "layers": "uniform", "kept": 4} | SHARP)
    wanted, plain, got = logits(teacher, None), logits(student, None), logits(student, found)
    assert float((wanted - plain).abs().max()) > 0.1
    assert float((got - wanted).norm()) < 0.01 * float((wanted - plain).norm())
    said = json.loads((found / CARRIED).read_text())["modules"]
    assert {name.rsplit(".", 1)[1] for name in said} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert said["model.layers.0.self_attn.q_proj"]["arrived"] == pytest.approx(1, abs=1e-3)
