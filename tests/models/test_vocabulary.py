"""Tokens are the same where they stand for the same text, whatever a tokenizer calls them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import pre_tokenizers

from orchestrator.models.vocabulary import token_map


@dataclass
class Words:
    """As much of a tokenizer as is asked for."""

    vocabulary: dict[str, int]

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def byte_level(words: list[str]) -> Words:
    """As GPT-2 has it: every byte by the library's own alphabet, then words as its pre-tokenizer spells them."""
    spelled = ["".join(p for p, _ in pre_tokenizers.ByteLevel(False).pre_tokenize_str(word)) for word in words]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *spelled]
    return Words({token: row for row, token in enumerate(tokens)})


def test_a_byte_level_vocabulary_meets_sentencepiece() -> None:
    ours = byte_level([" the", "né", " 東"])
    theirs = Words({"<unk>": 0, "<0x0A>": 1, "▁the": 2, "né": 3, "▁東": 4, "a": 5})
    found = token_map(ours, theirs, len(ours.vocabulary), 6)
    mapped = {token: int(found[row]) for token, row in ours.vocabulary.items() if found[row] >= 0}
    assert mapped == {"Ċ": 1, "Ġthe": 2, "nÃ©": 3, "ĠæĿ±": 4, "a": 5}
    back = token_map(theirs, ours, 7, len(ours.vocabulary))
    assert back.tolist()[0] == -1 and back.tolist()[6] == -1  # unknown to the other; no token at all
    assert back[2] == ours.vocabulary["Ġthe"]


def test_one_vocabulary_is_matched_by_number_padding_too() -> None:
    same = Words({"a": 0, "b": 1})
    assert token_map(same, same, 4, 4).tolist() == [0, 1, 2, 3]
    assert token_map(same, same, 5, 4).tolist() == [0, 1, 2, 3, -1]
    assert token_map(same, Words({"b": 0, "a": 3}), 3, 3).tolist() == [-1, 0, -1]
