"""Checkpoints that must be refused, each with one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny

from orchestrator.errors import UserError
from orchestrator.models.loading import Weights, resolve


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny("llama").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    return tmp_path / "model"


def test_identity_is_content_and_not_place(checkpoint: Path, tmp_path: Path) -> None:
    first = resolve(str(checkpoint), "teacher")
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    assert resolve(str(copy), "teacher").sha256 == first.sha256
    shard = sorted(copy.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name][..., 0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    assert resolve(str(copy), "teacher").sha256 != first.sha256


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "vocab.json"])
def test_what_shapes_the_text_is_part_of_the_identity(checkpoint: Path, name: str) -> None:
    first = resolve(str(checkpoint), "teacher").sha256
    (checkpoint / name).write_text("{}")
    second = resolve(str(checkpoint), "teacher").sha256
    (checkpoint / name).write_text("[]")
    assert len({first, second, resolve(str(checkpoint), "teacher").sha256}) == 3


def test_weights_one_at_a_time(checkpoint: Path) -> None:
    weights, model = Weights(checkpoint), tiny("llama")
    for name, parameter in model.named_parameters():
        assert torch.equal(weights.get(name), parameter)
    assert "model.nothing.weight" not in weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(checkpoint: Path, value: float) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[3] = value
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"teacher: {name} in .* has NaN or infinite"):
        resolve(str(checkpoint), "teacher")


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    gone = sorted(checkpoint.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name} is missing"):
        resolve(str(checkpoint), "teacher")


def test_a_truncated_shard_is_named(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{shard.name} is corrupt"):
        resolve(str(checkpoint), "teacher")


def test_pickled_weights_are_never_opened(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors*"):
        path.unlink()
    torch.save({"weight": torch.ones(2)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled ones \(pytorch_model.bin\)"):
        resolve(str(checkpoint), "student")


def test_an_unknown_family_lists_the_known(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    with pytest.raises(UserError, match=r"family 'opt' is not known; known: gemma2, .*llama, mistral"):
        resolve(str(checkpoint), "teacher")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lama2-7b", r"student: 'lama2-7b' is no alias \(see `pkt models`\), no folder and no hub id"),
        ("llama2-7b", r"meta-llama/Llama-2-7b-hf is not in the local cache .* HF_TOKEN"),
        ("./nowhere", r"no folder"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message):
        resolve(name, "student")


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config.json"):
        resolve(str(tmp_path), "student")
