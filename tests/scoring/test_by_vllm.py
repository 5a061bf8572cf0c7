"""vLLM's answers beside transformers' own, on a real model with adapters as sweeps leave them. Skips without vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from smollm2 import smollm2
from transformers import AutoModelForCausalLM

from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring.by_vllm import Writer
from orchestrator.scoring.engine import loaded
from orchestrator.scoring.judge import Item, Said
from orchestrator.tasks.metric import Metric

pytestmark = pytest.mark.long
METRIC = Metric("exact_match", "none", max_new_tokens=24, until=("however",))
ASKED = ["Two plus two is", "The rivers of Spain are", "Once upon a time", "Python is a language that"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vllm")
    return smollm2(tmp_path_factory.mktemp("real"))


def adapter(model: Path, folder: Path, rank: int) -> Path:
    """All matrices, embedding and head among them, far enough from nothing that answers differ."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    names = [name for name, one in base.named_modules() if isinstance(one, torch.nn.Linear | torch.nn.Embedding)]
    worn = get_peft_model(base, LoraConfig(r=rank, target_modules=names, task_type="CAUSAL_LM"))
    torch.manual_seed(rank)
    with torch.no_grad():
        for name, parameter in worn.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.normal_(std=3e-3)
    worn.save_pretrained(folder, save_embedding_layers=False)
    return folder


def answers(model: Path, worn: Path | None, writer: Writer | None) -> list[Said]:
    tokenizer = load_tokenizer(str(model))
    items = [Item(text, text, "", (), tuple(tokenizer(text).input_ids)) for text in ASKED]
    with loaded(str(model), worn, dtype="float32", writer=writer) as engine:
        some: Iterator[Any] = engine.said(items, METRIC, stops=[tokenizer.eos_token_id], known={}, golds={})
        told = {place: one for batch in some for place, one in batch}
    return [told[place] for place in range(len(items))]


def test_answers_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    """One engine for the student and adapters of two ranks; what is known is not asked again."""
    worn = [None, adapter(model, tmp_path / "small", 4), adapter(model, tmp_path / "large", 24)]
    plain = [answers(model, one, None) for one in worn]
    assert len({said.text for some in plain for said in some}) > len(ASKED)  # the adapters say something else
    for one, told in zip(worn, plain, strict=True):
        assert answers(model, one, Writer(str(model), one, "float32")) == told
