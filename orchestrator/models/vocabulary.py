"""Which of the teacher's tokens is which of the student's, so that embeddings can be cut where tokenizers differ."""

from __future__ import annotations

import re
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that GPT-2's alphabet leaves as they are


def _alphabet() -> dict[str, int]:
    """Character → byte of byte-level tokenizers: 256 printable characters stand for the bytes (GPT-2)."""
    rest = [byte for byte in range(256) if byte not in _PRINTED]
    return {chr(byte): byte for byte in _PRINTED} | {chr(256 + place): byte for place, byte in enumerate(rest)}


_ALPHABET = _alphabet()


def token_map(student: Any, teacher: Any, student_rows: int, teacher_rows: int) -> Int[Tensor, " v"]:
    """For each row of the student's embedding the teacher's row of the same token, and -1 where there is none.

    Tokens are compared by the text that they stand for, so that a byte-level "Ġthe" is SentencePiece's "▁the". Where
    the tokenizers agree, rows are matched by number, rows past the last token (padding) too.
    """
    own, theirs = student.get_vocab(), teacher.get_vocab()
    if own == theirs:
        rows = torch.arange(student_rows)
        return torch.where(rows < teacher_rows, rows, -1)
    by_text = {text: row for text, row in _texts(theirs).items() if row < teacher_rows}
    found = torch.full((student_rows,), -1)
    for text, row in _texts(own).items():
        if row < student_rows:
            found[row] = by_text.get(text, -1)
    return found


def _texts(vocabulary: dict[str, int]) -> dict[bytes, int]:
    """What each token stands for; the first of several that stand for the same."""
    byte_level = all(character in vocabulary for character in _ALPHABET)
    texts: dict[bytes, int] = {}
    for token, row in sorted(vocabulary.items(), key=lambda item: item[1]):
        texts.setdefault(_text(token, byte_level), row)
    return texts


def _text(token: str, byte_level: bool) -> bytes:
    if byte_level and all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()
