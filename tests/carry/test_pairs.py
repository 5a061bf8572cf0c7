"""Tokens that both models read, and how many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from updates import texts

from orchestrator.carry.pairs import pairs, read_pairs
from orchestrator.errors import UserError
from orchestrator.models.loading import load_tokenizer, source_of
from orchestrator.tasks import rows as data
from orchestrator.tasks.aligned import aligned, ends
from orchestrator.tasks.base import Example, Message

SAYING = Example(
    id="one",
    messages=(Message(role="user", content="two words, é"), Message(role="assistant", content="ab abc")),
)


def by_words() -> Any:
    """A tokenizer of words and marks, where the demo's has characters."""
    split = pre_tokenizers.Whitespace()
    words = [word for message in SAYING.messages for word, _ in split.pre_tokenize_str(message.content)]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys(["<unk>", "<eos>", "user", "assistant", *words]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def test_tokens_meet_where_they_end_at_the_same_character() -> None:
    """Words end where their last characters do; nothing of the template is among them."""
    characters = load_tokenizer(source_of("demo-student", "student"))
    one, other = (ends(SAYING, "plain", reader, 100) for reader in (by_words(), characters))
    read = "".join(message.content for message in SAYING.messages)
    assert [read[:place].split()[-1] for place in sorted(one)][:2] == ["two", "words"]
    assert len(other) == len(read)
    assert sorted(one) == [3, 9, 10, 12, 14, 18]
    assert [other[place] for place in sorted(one)] == [pair[1] for pair in aligned(one, other)]
    assert max(ends(SAYING, "plain", characters, 12).values()) < 12


def drawn(tmp_path: Path, teacher: str, student: str, count: int = 40, **options: Any) -> Path:
    for name in ("texts", "pairs"):
        (tmp_path / name).mkdir(exist_ok=True)
    data.write(tmp_path / "texts", rows=[row.model_dump() for row in texts(count)])
    settings: dict[str, Any] = {"template": "plain", "max_tokens": 100, "tokens": 200} | options
    pairs(tmp_path / "pairs", texts=tmp_path / "texts", teacher=teacher, student=student, **settings)
    return tmp_path / "pairs"


def test_as_many_are_drawn_as_are_asked_for_and_held_out_by_text(demo_models: dict[str, Path], tmp_path: Path) -> None:
    names = [str(folder) for folder in demo_models.values()]
    found = read_pairs(drawn(tmp_path, *names))
    counts = {use: sum(map(len, some.values())) for use, some in found.items()}
    assert counts == {"fitted": 200, "held": 50}
    assert not found["fitted"].keys() & found["held"].keys()
    assert read_pairs(drawn(tmp_path, *names)) == found
    assert all(one == other for some in found.values() for pairs in some.values() for one, other in pairs)


def test_too_few_texts_and_tokenizers_with_nothing_in_common_are_refused(
    demo_models: dict[str, Path], tmp_path: Path
) -> None:
    own, theirs = str(demo_models["demo-student"]), str(demo_models["demo-teacher"])
    with pytest.raises(UserError, match="maps need 32; 4 are missing"):
        drawn(tmp_path, own, theirs, tokens=28)
    words = tmp_path / "words"
    by_words().save_pretrained(words)
    with pytest.raises(UserError, match="in 0% of all places"):
        drawn(tmp_path, str(words), own, max_tokens=3)
