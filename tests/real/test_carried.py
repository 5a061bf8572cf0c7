"""An update of a real model, read by a real tokenizer on real rows, and another tokenizer beside it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from updates import carried, lora_of

from orchestrator.carry.carry import CARRIED
from orchestrator.models.loading import load, load_tokenizer, source_of
from orchestrator.tasks import TASKS
from orchestrator.tasks.aligned import aligned, ends
from orchestrator.tasks.template import encode

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("real")]


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("passes")


@pytest.mark.parametrize("kind", ["theseus", "cross_lora", "ridge"])
def test_from_smollm2_into_itself_an_update_stays_what_it_is(
    kind: str, smollm: Path, shared: Path, passes: Path, tmp_path: Path
) -> None:
    """On answers that no map was made of. Maps are of 2,000 tokens, and what those don't span is lost; cross_lora keeps
    128 of 576 directions, of which random updates have a share like any other's."""
    train = TASKS["gsm8k"].splits(str(shared / "gsm8k"))["train"]
    model = load(str(smollm), dtype="float32")
    names = ["o_proj", "down_proj", "up_proj"]
    folder = lora_of(model, tmp_path / "update", target_modules=names, layers_to_transform=[0, 14, 29])
    found = carried(tmp_path, smollm, smollm, {"kind": kind}, train[:60], "float32", passes)
    said = json.loads((found / CARRIED).read_text())["modules"]
    assert len(said) == 3 * 3
    tokenizer = load_tokenizer(str(smollm))
    rows = [encode(row, "plain", tokenizer, 200).ids for row in train[100:104]]

    def logits(adapter: Path | None) -> torch.Tensor:
        stock = load(str(smollm), dtype="float32")
        worn = PeftModel.from_pretrained(stock, str(adapter)).eval() if adapter else stock
        with torch.no_grad():
            return torch.cat([worn(torch.tensor([ids])).logits[0] for ids in rows])

    plain, wanted, got = (logits(one) for one in (None, folder, found))
    moved, off = (wanted - plain).norm(), (got - wanted).norm()
    if kind == "cross_lora":
        shares = [facts["arrived"] for facts in said.values()]
        assert 0.03 < sum(shares) / len(shares) < 0.6
    else:
        assert min(facts["written"] for facts in said.values()) > 0.9
        assert float(off) < 0.35 * float(moved)


def test_its_tokens_and_the_demos_characters_meet(smollm: Path, shared: Path) -> None:
    """Every token of the one ends at a character of the other; what was read until there is the same text."""
    real, characters = load_tokenizer(str(smollm)), load_tokenizer(source_of("demo-student", "student"))
    for row in TASKS["gsm8k"].splits(str(shared / "gsm8k"))["train"][:20]:
        if not all(ord(letter) < 127 for message in row.messages for letter in message.content):
            continue
        one, other = ends(row, "chat", real, 2048), ends(row, "plain", characters, 4096)
        read = "".join(message.content.strip() for message in row.messages)
        assert max(one) == max(other) == len(read) and len(aligned(one, other)) == len(one)
        ids = real(real.apply_chat_template([m.model_dump() for m in row.messages], tokenize=False)).input_ids
        places = sorted(one)
        for before, place in pairwise(places):
            assert real.decode([ids[one[place]]]).strip() == read[before:place].strip()
