"""Adapters that answer together: by plain models with one adapter each, token after token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import saved
from updates import lora_of

from orchestrator.models import adapters
from orchestrator.models.composed import write
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.scoring import generation
from orchestrator.scoring.engine import gold_losses
from orchestrator.scoring.likelihoods import token_logs
from orchestrator.tasks.template import Encoded


@pytest.fixture(params=["llama", *(pytest.param(name, marks=pytest.mark.long) for name in ("gemma2", "llama-tied"))])
def pair(request: Any, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A model, and two adapters of it that say different things."""
    saved(tmp_path / "model", request.param)
    names = [["q_proj", "down_proj"], ["v_proj", "up_proj"]]
    made = []
    for place, targets in enumerate(names):
        torch.manual_seed(place)
        made.append(
            lora_of(load(str(tmp_path / "model")), tmp_path / f"lora-{place}", target_modules=targets, r=4 + place)
        )
    return tmp_path / "model", made


def logits(folder: Path, adapter: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        worn = PeftModel.from_pretrained(load(str(folder)), str(adapter)).eval()
        return worn(torch.tensor([ids])).logits[0]


def together(folder: Path, made: list[Path], ids: list[int], by: str, every: int) -> torch.Tensor:
    each = torch.stack([logits(folder, adapter, ids) for adapter in made])
    if by == "composite":
        return each.mean(0)
    return torch.stack([each[(place // every) % len(made), place] for place in range(len(ids))])


def rows() -> list[Encoded]:
    draw = torch.Generator().manual_seed(3)
    shared = torch.randint(5, 90, (24,), generator=draw).tolist()
    each = [[*shared, *torch.randint(5, 90, (width,), generator=draw).tolist()] for width in (5, 9, 7)]
    return [Encoded(str(place), ids, [-100] * 24 + ids[24:]) for place, ids in enumerate(each)]


@pytest.mark.parametrize(("by", "every"), [("composite", 1), ("switch", 1), ("switch", 3)])
def test_likelihoods_and_answers_are_those_of_plain_models(
    by: Any, every: int, pair: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """With what rows share gone through once, and keys and values kept from token to token."""
    folder, made = pair
    (tmp_path / "both").mkdir()
    write(tmp_path / "both", made, by=by, every=every)
    base, tokenizer = load(str(folder)), load_tokenizer(str(folder))
    prompts = [row.ids[: 24 + place] for place, row in enumerate(rows())]
    with adapters.wearing(base, tmp_path / "both") as network:
        found = {place: logs for batch in token_logs(network, rows(), pad=0) for place, logs in batch}
        options: dict[str, Any] = {"new": 6, "stops": (), "at_once": 2, "device": base.device}
        with torch.no_grad():
            said = dict(generation.answered(network, tokenizer, prompts, **options))
            greedy = [list(prompt) for prompt in prompts]
            for ids in greedy:
                for _ in range(6):
                    ids.append(int(together(folder, made, ids, by, every)[-1].argmax()))
    for place, row in enumerate(rows()):
        logs = together(folder, made, row.ids, by, every).log_softmax(-1)
        wanted = torch.stack([logs[at - 1, row.ids[at]] for at in range(24, len(row.ids))])
        torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-4)
        own = [token for token in greedy[place][len(prompts[place]) :] if token not in tokenizer.all_special_ids]
        assert list(said[place].ids) == own
    for key, value in load(str(folder)).state_dict().items():
        assert torch.equal(base.state_dict()[key], value)


@pytest.mark.parametrize("by", ["composite", "switch"])
def test_a_composition_of_one_is_that_adapter(by: Any, pair: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder, (first, _) = pair
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", [first], by=by)
    losses = []
    for adapter in (first, tmp_path / "one"):
        with adapters.wearing(load(str(folder)), adapter) as network:
            losses.append(gold_losses(network, rows(), 0))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
