"""What is learnt and asked is one text, so each text and each label here is written down a second time by hand:
pieces with their "learnt or not", whose tokens are counted by tokenising ever longer beginnings of the whole text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from demo import make_models as demo
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers_of_all_kinds import TEXTS, TOKENIZERS, byte_fallback, byte_level, chat_tokenizer

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Message, read_jsonl
from orchestrator.tasks.template import Encoded, collate, encode, prompt_of, render, tokenize

Pieces = list[tuple[str, bool]]  # text, and whether it is learnt

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BOS_CHAT = (  # no opening of the assistant's turn, as in Llama 2
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content | trim }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content | trim }} [/INST]\n{% endif %}{% endfor %}"
)
THINKING_CHAT = (  # only the last turn shows its (empty) thoughts, as in Qwen3
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def example(*turns: str, system: str = "", id: str = "x") -> Example:
    """Turns of user and assistant alternately, the user's first."""
    roles = ("user", "assistant")
    messages = [Message(role=roles[place % 2], content=turn) for place, turn in enumerate(turns)]  # type: ignore[arg-type]
    return Example(id=id, messages=([Message(role="system", content=system)] if system else []) + messages)


def plain_pieces(messages: tuple[Message, ...], eos: str) -> Pieces:
    """METHOD.md, section 1, step 1, read anew."""
    pieces: Pieces = []
    for message in messages:
        if message.role == "assistant":
            pieces += [("<|assistant|>\n", False), (message.content.strip() + eos, True)]
        else:
            pieces.append((f"<|{message.role}|>\n{message.content.strip()}\n\n", False))
    return pieces


def by_beginnings(pieces: Pieces, tokenizer: Any, **options: bool) -> tuple[list[int], list[int]]:
    """Ids and labels: whatever tokens a learnt piece adds to the text before it are labelled. No offsets."""
    text, ids, labels = "", [], []
    for place, (piece, learnt) in enumerate(pieces):
        text += piece
        if not learnt and not pieces[place + 1][1]:
            continue  # tokens may cross from one part of a question to the next
        now = list(tokenizer(text, **options)["input_ids"])
        assert now[: len(ids)] == ids, "the reference needs a token to begin where the turn begins"
        labels += now[len(ids) :] if learnt else [-100] * (len(now) - len(ids))
        ids = now
    return ids, labels


def learnt_text(row: Encoded, tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row.labels if label != -100]))


CHATS = {
    "one turn": example("How many are 2 × 3?", "There are 6 ñ. So the answer is 6."),
    "three turns": example("Who?", "René’s café", " ñ 7\n\n  8 ", "ñ 8  9 – ’\n é ñ", "And?", "’"),
    "system": example("Hello there", "9 for $2", system="Be brief.\n"),
    "to be stripped": example("\n  Question: 7 \n\n", "  \nAnswer: 16 eggs \n"),
}


def test_plain_text_is_that_of_the_method() -> None:
    """Against the text of METHOD.md, section 1, step 1, typed out in full."""
    tokenizer = demo.tokenizer()
    row = example(" \nBackwards: kdmz\n", " zmdk ")
    assert render(row.messages, "plain", tokenizer) == "<|user|>\nBackwards: kdmz\n\n<|assistant|>\nzmdk<eos>"
    assert prompt_of(row, "plain", tokenizer) == "<|user|>\nBackwards: kdmz\n\n<|assistant|>\n"
    row = example("a", "b", "c\n\nd", "e", system="s ")
    before = "<|system|>\ns\n\n<|user|>\na\n\n<|assistant|>\nb<eos><|user|>\nc\n\nd\n\n<|assistant|>\n"
    assert prompt_of(row, "plain", tokenizer) == before
    assert render(row.messages, "plain", tokenizer) == before + "e<eos>"
    assert render(row.messages, "plain", byte_level()) == (before + "e<eos>").replace("<eos>", "</s>")


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_tokens_of_the_answers(kind: str, chat: str) -> None:
    """Against the tokens that each answer adds to the text before it, and against the text that they decode to."""
    tokenizer, row = TOKENIZERS[kind](), CHATS[chat]
    encoded = encode(row, "plain", tokenizer, 2048)
    assert (encoded.ids, encoded.labels) == by_beginnings(plain_pieces(row.messages, tokenizer.eos_token), tokenizer)
    assert encoded.id == row.id
    if kind != "demo":  # which has no é
        answers = [turn.content.strip() + tokenizer.eos_token for turn in row.messages if turn.role == "assistant"]
        assert learnt_text(encoded, tokenizer) == "".join(answers)
    text = render(row.messages, "plain", tokenizer)
    assert text == prompt_of(row, "plain", tokenizer) + row.messages[-1].content.strip() + tokenizer.eos_token


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_question_has_the_tokens_of_training(kind: str) -> None:
    """Against training: what is asked (`tokenize` of the prompt) is the unlabelled beginning, token by token."""
    tokenizer, row = TOKENIZERS[kind](), CHATS["three turns"]
    asked = list(tokenize(prompt_of(row, "plain", tokenizer), tokenizer).input_ids)
    encoded = encode(row, "plain", tokenizer, 2048)
    assert encoded.ids[: len(asked)] == asked
    assert encoded.labels[len(asked) :] == encoded.ids[len(asked) :]
    assert encoded.labels[len(asked) - 1] == -100
    begins = [tokenizer.bos_token_id] if "bos" in kind else []
    assert [token for token in encoded.ids if token == tokenizer.bos_token_id] == begins


def test_tokenizers_exercise_the_offsets() -> None:
    """The tokenizers above do what the tests are for: letters in parts, lone and trimmed spaces, a BOS token."""
    assert byte_level().tokenize("ñ 7 é") == ["Ã", "±", "Ġ", "7", "Ġ", "Ã©"]
    assert byte_fallback().tokenize("\nñ")[-3:] == ["<0x0A>", "<0xC3>", "<0xB1>"]
    assert [byte_level(bos=True)("é").input_ids[0], byte_fallback()("é").input_ids[0]] == [0, 1]
    assert (2, 2) in byte_level(trim=True)("a 7", return_offsets_mapping=True)["offset_mapping"]
    for text in TEXTS:
        for tokenizer in (byte_level(), byte_fallback()):
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_real_rows(kind: str, shared: Path) -> None:
    """GSM8K rows with letters of several bytes, against the tokens that the answer adds to its question."""
    tokenizer = TOKENIZERS[kind]()
    rows = [
        row for row in read_jsonl(shared / "gsm8k" / "train.jsonl")[:2000] if not row.messages[-1].content.isascii()
    ]
    assert len(rows) > 20
    for row in rows[:20]:
        encoded = encode(row, "plain", tokenizer, 4096)
        assert (encoded.ids, encoded.labels) == by_beginnings(
            plain_pieces(row.messages, tokenizer.eos_token), tokenizer
        )


@pytest.mark.parametrize("kind", ["demo", "byte-level, bos"])
def test_cut_on_the_right(kind: str) -> None:
    """Against slices of the uncut ids and labels; the last length with one labelled token is the shortest allowed."""
    tokenizer, row = TOKENIZERS[kind](), CHATS["one turn"]
    whole = encode(row, "plain", tokenizer, 2048)
    start = whole.labels.index(next(label for label in whole.labels if label != -100))
    assert start == len(tokenizer(prompt_of(row, "plain", tokenizer)).input_ids)
    for length in (len(whole.ids) + 1, len(whole.ids), len(whole.ids) - 1, start + 2, start + 1):
        cut = encode(row, "plain", tokenizer, length)
        assert (cut.ids, cut.labels) == (whole.ids[:length], whole.labels[:length])
    assert sum(label != -100 for label in cut.labels) == 1
    for length in (start, 1):
        with pytest.raises(UserError, match=f"'x' has no assistant token within its first {length} tokens"):
            encode(row, "plain", tokenizer, length)


def test_a_text_longer_than_the_tokenizer_says_is_not_cut_by_it() -> None:
    """Against the number of characters, which are the demo tokenizer's tokens."""
    tokenizer = demo.tokenizer()
    assert tokenizer.model_max_length == 128
    encoded = encode(example("q" * 300, "a" * 300), "plain", tokenizer, 2048)
    assert len(encoded.ids) == len("U\n\n\nA\nE") + 600
    assert sum(label != -100 for label in encoded.labels) == 301


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", [CHAT, BOS_CHAT])
def test_chat_template_has_the_same_labels(template: str, chat: str, bos: bool) -> None:
    """Against the template's text written by hand, and exactly one BOS token wherever there is one."""
    tokenizer, row, pieces = chat_tokenizer(template, bos=bos), CHATS[chat], []
    if template is BOS_CHAT:
        pieces.append(("<s>", False))
    for turn in row.messages:
        content = turn.content.strip()
        if turn.role != "assistant":
            pieces.append(
                (f"<|{turn.role}|>\n{content}</s>" if template is CHAT else f"[INST] {content} [/INST]\n", False)
            )
        else:
            pieces += [("<|assistant|>\n", False)] if template is CHAT else []
            pieces.append((f"{content}</s>", True))
    text = "".join(piece for piece, _ in pieces)
    assert render(row.messages, "chat", tokenizer) == text
    assert prompt_of(row, "chat", tokenizer) + pieces[-1][0] == text
    encoded = encode(row, "chat", tokenizer, 2048)
    assert (encoded.ids, encoded.labels) == by_beginnings(pieces, tokenizer, add_special_tokens=template is CHAT)
    assert encoded.ids.count(0) == int(bos or template is BOS_CHAT)
    answers = [turn.content.strip() + "</s>" for turn in row.messages if turn.role == "assistant"]
    assert learnt_text(encoded, tokenizer) == "".join(answers)


def test_a_template_that_shows_the_last_turn_otherwise_labels_no_word_of_the_user() -> None:
    """Against the pieces of such a text: what is learnt are the assistant's words, as they stand in the whole."""
    tokenizer = chat_tokenizer(THINKING_CHAT, bos=False)
    one = encode(example("Who?", "René"), "chat", tokenizer, 2048)
    assert learnt_text(one, tokenizer) == "<think>\n\n</think>\n\nRené</s>"
    row = example("Who?", "René", "How many eggs does she sell?", "9 of them")
    pieces: Pieces = [
        ("<|user|>\nWho?</s><|assistant|>\n", False),
        ("René</s>", True),
        ("<|user|>\nHow many eggs does she sell?</s><|assistant|>\n", False),
        ("<think>\n\n</think>\n\n9 of them</s>", True),
    ]
    assert render(row.messages, "chat", tokenizer) == "".join(piece for piece, _ in pieces)
    encoded = encode(row, "chat", tokenizer, 2048)
    assert learnt_text(encoded, tokenizer) == "".join(piece for piece, learnt in pieces if learnt)
    assert (encoded.ids, encoded.labels) == by_beginnings(pieces, tokenizer)


def test_no_chat_template_is_the_users_to_mend() -> None:
    """The error names the field and the remedy."""
    with pytest.raises(UserError, match=r"template: .* --template plain"):
        encode(CHATS["one turn"], "chat", byte_level(), 2048)


@pytest.mark.parametrize(
    "chat", [example("q", "a", system="s"), Example(id="x", messages=CHATS["one turn"].messages[1:])]
)
def test_a_chat_that_the_template_refuses_is_the_users_to_mend(chat: Example) -> None:
    """By what a user reads: a UserError, whether the template has no system turn (Gemma's) or needs a user's first."""
    refusing = "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
    with pytest.raises(UserError, match="template"):
        encode(chat, "chat", chat_tokenizer(refusing + CHAT), 2048)


def test_collate_pads_on_the_right() -> None:
    """Against tensors typed out in full."""
    batch = collate([Encoded("a", [5, 6, 7], [-100, 6, 7]), Encoded("b", [8], [-100]), Encoded("c", [9, 0], [9, 0])], 0)
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0], [9, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, -100, -100], [9, 0, -100]],
    }


LETTERS = st.one_of(st.text(max_size=12), st.text("aéñ’ 7\n\t–", max_size=12))
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), LETTERS), max_size=4)


@settings(max_examples=150, deadline=None)
@given(turns=TURNS, answer=LETTERS, length=st.integers(1, 90))
def test_any_chat_of_the_demo_tokenizer(turns: list[tuple[str, str]], answer: str, length: int) -> None:
    """Against the hand-written text tokenised in beginnings, cut by slices."""
    tokenizer = demo.tokenizer()
    assume(not any(token in text for _, text in [*turns, ("", answer)] for token in demo.SPECIAL))
    messages = tuple(Message(role=role, content=text) for role, text in [*turns, ("assistant", answer)])  # type: ignore[arg-type]
    row = Example(id="any", messages=messages)
    pieces = plain_pieces(messages, "<eos>")
    assert render(messages, "plain", tokenizer) == "".join(piece for piece, _ in pieces)
    assert prompt_of(row, "plain", tokenizer) == "".join(piece for piece, _ in pieces[:-1])
    ids, labels = by_beginnings(pieces, tokenizer)
    # One token per character, a special token counting as one: a count that no tokenizer is asked for.
    counted = "".join(piece for piece, _ in pieces)
    for token in demo.SPECIAL:
        counted = counted.replace(token, "@")
    assert len(ids) == len(counted)
    if all(label == -100 for label in labels[1:length]):
        with pytest.raises(UserError, match="'any' has no assistant token"):
            encode(row, "plain", tokenizer, length)
    else:
        encoded = encode(row, "plain", tokenizer, length)
        assert (encoded.ids, encoded.labels) == (ids[:length], labels[:length])


@settings(max_examples=80, deadline=None)
@given(question=LETTERS, answer=LETTERS, kind=st.sampled_from(["byte-level", "byte-level, bos"]))
def test_any_answer_of_a_byte_level_tokenizer(question: str, answer: str, kind: str) -> None:
    """What is learnt decodes to the stripped answer and the eos token, to the byte."""
    tokenizer = TOKENIZERS[kind]()
    assume(not any(token in text for token in ("<s>", "</s>") for text in (question, answer)))
    encoded = encode(example(question, answer), "plain", tokenizer, 2048)
    assert learnt_text(encoded, tokenizer) == answer.strip() + "</s>"
    assert tokenizer.decode(encoded.ids).removeprefix("<s>") == (
        f"<|user|>\n{question.strip()}\n\n<|assistant|>\n{answer.strip()}</s>"
    )
