"""The engine against transformers' own `generate` and against one plain pass a row, over every family of models."""

from __future__ import annotations

import random
import weakref
from typing import Any

import pytest
import torch
from tiny import tiny

from orchestrator.scoring import caches, generation, likelihoods
from orchestrator.scoring.generation import answered, answered_in_step
from orchestrator.scoring.likelihoods import token_logs
from orchestrator.tasks.template import Encoded

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text", "phi3", "gpt_neox"]
WORDS, NEW = 40, 24
STOPS = [*range(3, WORDS, 4)]


class Letters:
    """A tokenizer whose tokens are single letters, as a text of `until` may begin anywhere."""

    all_special_ids = (0, 1, 2)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(ord("A") + one) for one in ids)


def model_of(family: str, **more: Any) -> Any:
    torch.manual_seed(0)
    network = tiny(family, vocab_size=WORDS, max_position_embeddings=512, tie_word_embeddings=False, **more)
    for parameter in network.parameters():  # livelier than at its start, whose answers say one thing for ever
        if parameter.dim() == 2:
            parameter.data = torch.randn_like(parameter) * (3 / parameter.shape[1] ** 0.5)
    return network


def prompts(common: int, count: int = 9) -> list[list[int]]:
    draw = random.Random(common)
    start = [draw.randrange(4, WORDS) for _ in range(common)]
    return [start + [draw.randrange(4, WORDS) for _ in range(draw.randint(1, 30))] for _ in range(count)]


@torch.no_grad()
def alone(network: Any, ids: list[int]) -> str:
    asked = torch.tensor([ids])
    made = network.generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW, do_sample=False,
        eos_token_id=STOPS, pad_token_id=0, use_cache=True,
    )  # fmt: skip
    row = made[0, len(ids) :].tolist()
    return Letters().decode(row[: next((at for at, token in enumerate(row) if token in STOPS), None)])


@pytest.mark.parametrize("at_once", [1, 4, 32])
@pytest.mark.parametrize("common", [0, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_generate_a_row_at_a_time(family: str, common: int, at_once: int) -> None:
    """Whoever comes, goes and is moved in the meantime; each prompt is answered once."""
    network, asked = model_of(family), prompts(common)
    expected = [alone(network, ids) for ids in asked]
    assert len({len(text) for text in expected}) > 2  # rows end at different times
    found = list(answered(network, Letters(), asked, new=NEW, stops=STOPS, at_once=at_once, device=network.device))
    assert sorted(place for place, _ in found) == list(range(len(asked)))
    assert [said.text for _, said in sorted(found, key=lambda one: one[0])] == expected
    assert {place for place, said in found if said.cut} == {at for at, text in enumerate(expected) if len(text) == NEW}


def test_what_has_ended_lets_go_of_its_room_before_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows, held = model_of("llama"), [], weakref.WeakSet[caches.Held]()
    begun, begin, layers = generation._begun, caches.Held.begin, network.config.num_hidden_layers

    def noted(layer: caches.Held, *words: Any) -> None:
        held.add(layer)
        begin(layer, *words)

    def watched(model: Any, shared: Any, asked: Any, device: Any) -> Any:
        rows.append(sum(one.buffers[0].shape[0] for one in held) // layers + len(asked))
        return begun(model, shared, asked, device)

    monkeypatch.setattr(caches.Held, "begin", noted)
    monkeypatch.setattr(generation, "_begun", watched)
    list(answered(network, Letters(), prompts(0, 40), new=NEW, stops=STOPS, at_once=8, device=network.device))
    assert len(rows) > 4 and max(rows) == 8  # those that go on, and those that begin


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_a_layer_that_looks_back_less_far_than_a_prompt_sees_what_it_should(family: str) -> None:
    """A window of 16 tokens, prompts of up to 70: nothing is shared then, and rows still end apart."""
    network, asked = model_of(family, sliding_window=16), prompts(40)
    assert caches.looks_back(network) == 16
    expected = [alone(network, ids) for ids in asked]
    found = dict(answered(network, Letters(), asked, new=NEW, stops=STOPS, at_once=4, device=network.device))
    assert [found[at].text for at in range(len(asked))] == expected


def test_what_prompts_begin_with_goes_through_the_model_once() -> None:
    """Counted at its door: the common start, each rest, and a token a step and row."""
    network, asked = model_of("llama"), prompts(40)
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, __, named: seen.append(named["input_ids"].numel()), with_kwargs=True)
    list(answered(network, Letters(), asked, new=NEW, stops=STOPS, at_once=32, device=network.device))
    longest = max(map(len, asked)) - 40
    assert seen[0] == 40
    assert seen[1] == longest * len(asked)
    assert seen[2:] == sorted(seen[2:], reverse=True)  # who has ended costs nothing more
    assert seen[2] > seen[-1]


def test_an_answer_ends_before_a_text() -> None:
    """Against the whole answer, cut by hand; the text may lie in several tokens, and at the answer's begin."""
    network, asked = model_of("llama"), prompts(0)
    whole = [alone(network, ids) for ids in asked]
    until = (whole[0][3:6], whole[1][:2])
    found = dict(
        answered(network, Letters(), asked, new=NEW, stops=STOPS, at_once=4, device=network.device, until=until)
    )
    for at, text in enumerate(whole):
        first = min((text.index(one) for one in until if one in text), default=None)
        assert found[at].text == text[:first]
        assert found[at].cut == (first is None and len(text) == NEW)
    assert found[1].text == ""


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_nothing_ends_goes_on_past_every_stop(family: str) -> None:
    """Its ids, but for special ones, are those of transformers' own `generate`; of ranks in step, too."""
    network, asked = model_of(family), prompts(0)
    with torch.no_grad():
        made = [
            network.generate(
                torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            for ids in asked
        ]
    expected = [row[0, len(ids) :].tolist() for row, ids in zip(made, asked, strict=True)]
    assert any(token in STOPS for row in expected for token in row[:-1])
    options: dict[str, Any] = {"new": NEW, "stops": (), "device": network.device}
    found = dict(answered(network, Letters(), asked, at_once=4, **options))
    in_step = answered_in_step(network, Letters(), asked, **options)
    for at, row in enumerate(expected):
        assert found[at].ids == in_step[at].ids == tuple(token for token in row if token > 2)


# Likelihoods


def rows(common: int) -> list[Encoded]:
    """Questions of three subjects, solved ones before them; of each four choices, and the gold answer with its end."""
    draw = random.Random(common)
    made = []
    for _ in range(3):
        start = [draw.randrange(4, WORDS) for _ in range(common)]
        for _ in range(4):
            question = start + [draw.randrange(4, WORDS) for _ in range(draw.randint(3, 40))]
            for length in (1, 1, 2, 5):
                choice = [draw.randrange(4, WORDS) for _ in range(length)]
                made.append(Encoded("", question + choice, [-100] * len(question) + choice))
            gold = [*choice, STOPS[0]]
            made.append(Encoded("", question + gold, [-100] * len(question) + gold))
    made.append(Encoded("", [5, 6, 7], [-100, 6, 7]))
    made.append(Encoded("", [*made[0].ids, 8, 9], [-100, *made[0].ids[1:4], *[-100] * (len(made[0].ids) - 3), 9]))
    return made


@torch.no_grad()
def by_hand(network: Any, row: Encoded) -> torch.Tensor:
    logs = network(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return torch.stack([logs[at - 1, label] for at, label in enumerate(row.labels) if label != -100])


@torch.no_grad()
def likeliest_by_hand(network: Any, row: Encoded) -> list[int]:
    best = network(torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
    return [best[at - 1] for at, label in enumerate(row.labels) if label != -100]


@pytest.mark.parametrize("tokens", [10**6, 200, None])
@pytest.mark.parametrize("common", [0, 60])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_each_row_alone(family: str, common: int, tokens: int | None) -> None:
    """And so are the likeliest tokens at the same places, where they are asked for."""
    network, asked = model_of(family), rows(common)
    found = [one for some in token_logs(network, asked, pad=0, tokens=tokens) for one in some]
    assert sorted(place for place, _ in found) == list(range(len(asked)))
    for place, logs in found:
        torch.testing.assert_close(logs, by_hand(network, asked[place]), rtol=1e-4, atol=1e-4)
    best: dict[int, torch.Tensor] = {}
    for some in token_logs(network, asked, pad=0, tokens=tokens, likeliest=best):
        for place, logs in some:
            assert best[place].tolist() == likeliest_by_hand(network, asked[place])
            assert len(logs) == len(best[place])
    assert len(best) == len(asked)
    labels = [[label for label in row.labels if label != -100] for row in asked]
    assert sum(best[at].tolist() != row for at, row in enumerate(labels)) > 0  # else labels would do


def test_shared_tokens_go_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at its door, against the number of different beginnings that the rows have; and fewer than with none."""
    network, asked = model_of("llama"), rows(60)
    seen: list[int] = []
    network.register_forward_pre_hook(
        lambda _, __, named: seen.append(int(named["attention_mask"][:, -named["input_ids"].shape[1] :].sum())),
        with_kwargs=True,
    )
    list(token_logs(network, asked, pad=0))
    shared = sum(seen)
    seen.clear()
    monkeypatch.setattr(likelihoods, "FEW", 10**6)
    list(token_logs(network, asked, pad=0))
    assert shared < sum(seen) / 5
    different = len({tuple(row.ids[:end]) for row in asked for end in range(1, len(row.ids))})
    assert different <= shared < 1.25 * different  # a few tokens in common are not worth a pass


def test_a_layer_with_a_short_window_sees_what_it_should() -> None:
    network, asked = model_of("mistral", sliding_window=16), rows(60)
    for some in token_logs(network, asked, pad=0):
        for place, logs in some:
            torch.testing.assert_close(logs, by_hand(network, asked[place]), rtol=1e-4, atol=1e-4)


def test_few_tokens_in_common_are_not_worth_a_pass() -> None:
    """Below the limit the prompts go through whole, in one pass."""
    network, asked = model_of("llama"), prompts(generation.FEW - 8)
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, __, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True)
    list(answered(network, Letters(), asked, new=2, stops=STOPS, at_once=32, device=network.device))
    assert seen[0] == max(map(len, asked))
