"""What is learnt, asked and chosen among are the same tokens: on real tokenizers, both templates and real rows.

The reference is training: what a model sees at a labelled place is all that stands before it in `encode`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from tokenizers_of_all_kinds import chat_tokenizer
from transformers import AutoTokenizer

from orchestrator.errors import UserError
from orchestrator.scoring import generation, likelihoods
from orchestrator.scoring.asking import questions
from orchestrator.scoring.engine import gold_losses, said
from orchestrator.tasks import TASKS
from orchestrator.tasks.base import Example, Message
from orchestrator.tasks.template import TODAY, encode, fitted, question, render, stops, turn_end

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "tokenizers"
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + GEMMA


@pytest.fixture(scope="module", params=["qwen2.5", "smollm2"])
def real(request: pytest.FixtureRequest) -> Any:
    if not REAL.is_dir():
        pytest.skip(f"no real tokenizers at {REAL}")
    return AutoTokenizer.from_pretrained(REAL / request.param)


def ended_by(end: str, template: str) -> Any:
    """A tokenizer of bytes whose chat template ends a turn with another token than eos."""
    tokenizer = chat_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": [end, "<start_of_turn>"]})
    return tokenizer


def rows(shared: Path, task: str) -> list[Example]:
    return TASKS[task].splits(str(shared / task))["test"][:40]


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("task", ["gsm8k", "mmlu"])
def test_what_is_asked_is_what_was_learnt(real: Any, template: Any, task: str, shared: Path) -> None:
    """Every choice's ids, with what stands before them, are a training row's up to the token that ends its turn."""
    examples, known = rows(shared, task), TASKS[task]
    items, _ = questions(examples, template, real, known.metric, known.choices)
    ends = stops(template, real)
    for example, item in zip(examples, items, strict=True):
        learnt = encode(example, template, real, 10**6)
        first = next(place for place, label in enumerate(learnt.labels) if label != -100)
        assert list(item.ids) == learnt.ids[:first]
        last = len(learnt.ids) - 1 - learnt.ids[::-1].index(ends[0])
        assert [label for label in learnt.labels if label != -100] == learnt.ids[first : last + 1]
        if known.choices:
            gold = known.choices.index(example.gold)
            assert list(item.choice_ids[gold]) == learnt.ids[first:last]
            assert len(set(item.choice_ids)) == 4 and {len(ids) for ids in item.choice_ids} == {1}
        assert real.decode(item.ids).endswith(item.prompt[-20:])


def test_qwen_joins_the_lines_end(shared: Path) -> None:
    """The case that this file is for: "|>" and a line's end are one token, which slicing after "|>" takes apart."""
    if not REAL.is_dir():
        pytest.skip(f"no real tokenizers at {REAL}")
    tokenizer = AutoTokenizer.from_pretrained(REAL / "qwen2.5")
    prompt, ids = question(rows(shared, "mmlu")[0], "plain", tokenizer)
    assert prompt.endswith("<|assistant|>\n") and tokenizer.decode(ids[-1:]) == ">\n"
    assert tokenizer(prompt.rstrip()).input_ids != ids[:-1]


@pytest.mark.parametrize("kind", ["multiple_choice", "exact_match"])
def test_the_model_sees_these_ids(kind: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through the model, recorded at its door, for generation, likelihoods and the loss."""
    tokenizer, model = ended_by("<end_of_turn>", GEMMA), tiny("llama", vocab_size=512, max_position_embeddings=4096)
    task = TASKS["mmlu" if kind == "multiple_choice" else "gsm8k"]
    examples = rows(shared, task.name)[:6]
    seen: list[list[int]] = []
    monkeypatch.setattr(likelihoods, "FEW", 10**6)  # each question by itself
    monkeypatch.setattr(generation, "FEW", 10**6)

    def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if ids.shape == mask.shape:  # a pass over questions, not one over next tokens
            seen.extend(row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True))

    model.register_forward_pre_hook(record, with_kwargs=True)
    items, metric = questions(examples, "chat", tokenizer, task.metric, task.choices)
    learnt = fitted(examples, "chat", tokenizer, 4096).rows
    list(said(model, tokenizer, items, metric, stops=stops("chat", tokenizer)))
    assert sorted(seen) == sorted(list(item.ids) for item in items)  # choices of one token go through once
    seen.clear()
    gold_losses(model, learnt, 0)
    last = [max(place for place, label in enumerate(row.labels) if label != -100) for row in learnt]
    assert sorted(seen) == sorted(row.ids[:end] for row, end in zip(learnt, last, strict=True))


def test_losses_and_likelihoods_by_hand(shared: Path) -> None:
    """Against one unpadded forward pass a row and a choice."""
    tokenizer, model = ended_by("<end_of_turn>", GEMMA), tiny("gemma2", vocab_size=512, max_position_embeddings=4096)
    task = TASKS["mmlu"]
    examples = sorted(rows(shared, "mmlu"), key=lambda row: len(row.messages[0].content))[:5]
    items, metric = questions(examples, "chat", tokenizer, task.metric, ("A", "None of B", "C", "D"))
    told = dict(one for some in said(model, tokenizer, items, metric, stops=[1]) for one in some)
    for place, item in enumerate(items):
        for logs, choice in zip(told[place].logs, item.choice_ids, strict=True):
            assert logs == pytest.approx(_by_hand(model, [*item.ids, *choice], len(item.ids)).sum().item(), rel=1e-4)
    learnt = fitted(examples, "chat", tokenizer, 4096).rows
    for row, loss in zip(learnt, gold_losses(model, learnt, 0), strict=True):
        first = next(place for place, label in enumerate(row.labels) if label != -100)
        last = len(row.labels) - next(back for back, label in enumerate(row.labels[::-1]) if label != -100)
        assert loss == pytest.approx(-_by_hand(model, row.ids[:last], first).mean().item(), rel=1e-4)


@torch.no_grad()
def _by_hand(model: Any, ids: list[int], first: int) -> torch.Tensor:
    logs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return torch.stack([logs[place - 1, ids[place]] for place in range(first, len(ids))])


@pytest.mark.parametrize(("end", "template"), [("<end_of_turn>", GEMMA), ("<|end|>", PHI)])
def test_a_turn_may_end_with_another_token_than_eos(end: str, template: str) -> None:
    """It is learnt with the turn, it ends an answer, and eos ends one too."""
    tokenizer = ended_by(end, template)
    turns = (Message(role="user", content="Who?"), Message(role="assistant", content="René"))
    example = Example(id="x", messages=turns)
    assert turn_end("chat", tokenizer) == end
    row = encode(example, "chat", tokenizer, 100)
    learnt = [label for label in row.labels if label != -100]
    assert tokenizer.decode(learnt) == f"René{end}"
    assert stops("chat", tokenizer) == [tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id]
    assert stops("plain", tokenizer) == [tokenizer.eos_token_id]


def test_a_template_whose_turns_have_no_end_is_refused() -> None:
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(UserError, match=r"template: .*no special token.* --template plain"):
        turn_end("chat", tokenizer)


def test_a_template_that_asks_for_the_date_gets_a_fixed_one() -> None:
    """Llama 3's would write today's into each prompt, and a sweep of two days would have two prompts."""
    tokenizer = ended_by("<end_of_turn>", DATED)
    text = render((Message(role="user", content="Who?"),), "chat", tokenizer, ask=True)
    assert text.startswith(TODAY.strftime("%d %b %Y"))
    assert TODAY.isoformat() == "2024-07-26"


def test_what_is_known_is_not_asked_again_and_changes_no_bit_of_the_rest(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of batches that a killed process had finished nothing is computed; the others are as they were with them."""
    tokenizer, model = ended_by("<end_of_turn>", GEMMA), tiny("llama", vocab_size=512, max_position_embeddings=4096)
    monkeypatch.setattr("orchestrator.scoring.budgets.TOKENS", 600)
    task = TASKS["mmlu"]
    items, metric = questions(rows(shared, "mmlu")[:12], "chat", tokenizer, task.metric, task.choices)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    whole = [dict(some) for some in said(model, tokenizer, items, metric, stops=[1])]
    assert len(whole) > 2
    everything = len(passes)
    passes.clear()
    known = {items[place].id: one for some in whole[:2] for place, one in some.items()}
    again = {
        place: one for some in said(model, tokenizer, items, metric, stops=[1], known=known) for place, one in some
    }
    assert again == {place: one for some in whole for place, one in some.items()}
    assert 0 < len(passes) <= everything - 2
