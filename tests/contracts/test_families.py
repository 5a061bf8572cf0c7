"""What every family promises: measured, cut and put into a smaller student, which starts as the student it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import FAMILIES, batch, saved, tiny

from orchestrator.cluster.ranks import Member
from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES as ROWS
from orchestrator.tasks.template import Encoded
from orchestrator.teacher.extract import extract
from orchestrator.teacher.measure import Measuring, measuring

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}
MINI_70B = {"hidden_size": 128, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
MINI_70B |= {"intermediate_size": 224, "head_dim": 2}
MINI_7B = {"hidden_size": 64, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
MINI_7B |= {"intermediate_size": 86, "head_dim": 2}
CROSSED = [("llama", "phi3"), ("phi3", "llama"), ("llama", "gpt_neox"), ("qwen3", "gpt_neox"), ("gemma2", "qwen2")]
ROW = batch(rows=4)


def encoded() -> list[Encoded]:
    rows = zip(ROW["input_ids"].tolist(), ROW["labels"].tolist(), strict=True)
    return [Encoded(str(number), ids, labels) for number, (ids, labels) in enumerate(rows)]


def transferred(folder: Path, rank: int, granularity: int = 1) -> tuple[dict[str, Any], dict[str, adapters.Start]]:
    """From a teacher and a student in the folder to transfer.json and the student's starts."""
    (folder / "measured").mkdir()
    (folder / "out").mkdir()
    job = Measuring(
        str(folder / "teacher"), encoded(), 0, "float32", folder / "partial",
        out=folder / "measured", granularity=granularity,
    )  # fmt: skip
    list(measuring(job, Member()))
    extract(
        folder / "out",
        measured=folder / "measured",
        teacher=str(folder / "teacher"),
        student=str(folder / "student"),
        student_name="a-student",
        metric={"kind": "taylor"},
        exact=False,
        layers={"kind": "sensitivity"},
        structure={"kind": "window"},
        modules=["attention", "ffn", "embedding"],
        rank=rank,
    )
    return json.loads((folder / "out" / "transfer.json").read_text()), adapters.read_start(folder / "out")


@pytest.mark.parametrize(("teacher", "student"), [*((family, family) for family in FAMILIES), *CROSSED])
def test_a_student_starts_as_it_was_and_its_adapter_is_portable(teacher: str, student: str, tmp_path: Path) -> None:
    sizes = SMALL if student != "gpt_neox" else SMALL | {"num_attention_heads": 2}
    saved(tmp_path / "teacher", teacher)
    stock = saved(tmp_path / "student", student, 1, **sizes)
    record, starts = transferred(tmp_path, rank=4)
    assert record["windows"].keys() == {f"{name}.weight" for name in starts}
    check_start(stock, lambda: tiny(student, 1, **sizes), starts, tmp_path / "adapter")


def check_start(stock: Any, again: Any, starts: dict[str, adapters.Start], folder: Path) -> None:
    targets = ROWS[stock.config.model_type].targets
    rank = next(iter(starts.values()))[0].shape[1]
    model = adapters.attach(again(), targets, rank=rank, alpha=rank, dropout=0.3, changes_base=True, starts=starts)
    adapted = adapters.lora_layers(model)
    assert adapted.keys() == starts.keys()
    given = {name: tensor for name, tensor in ROW.items() if name != "labels"}
    with torch.no_grad():
        before = stock(**given).logits
        assert float((model.train()(**given).logits - before).abs().max()) < 1e-5
        for layer in adapted.values():  # as training would
            up, down = adapters.factors_of(layer)
            up[:, :rank] += 0.1 * torch.randn_like(up[:, :rank])
            down[:rank] *= 1.1
        trained = model.eval()(**given).logits
    adapters.save(model, folder, "a-student")
    with torch.no_grad(), adapters.without_own_warnings():
        loaded = PeftModel.from_pretrained(again(), str(folder)).eval()(**given).logits
    assert float((trained - before).abs().max()) > 0.1
    assert float((loaded - trained).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_miniature_of_llama2_70b_to_7b(tmp_path: Path) -> None:
    """80 layers and grouped queries 64:8 into 32 layers with as many K/V heads as query heads, by tiles of 2."""
    saved(tmp_path / "teacher", "llama", **MINI_70B)
    stock = saved(tmp_path / "student", "llama", 1, **MINI_7B)
    record, starts = transferred(tmp_path, rank=4, granularity=2)
    assert len(record["layers"]) == 32 and record["layers"] == sorted(record["layers"]) and record["layers"][-1] < 80
    assert len(starts) == 32 * 7 + 2
    assert starts["model.layers.31.self_attn.k_proj"][0].shape == (64, 4)
    check_start(stock, lambda: tiny("llama", 1, **MINI_7B), starts, tmp_path / "adapter")
